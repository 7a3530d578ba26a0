"""The models of tensor-core and warp instructions against the layouts of the PTX ISA, and counts.

The formulas here are written from the tables of the PTX ISA (9.7.14, "Matrix Fragments for
mma.m16n8k16 with floating point type", "... m16n8k32", and ldmatrix), not from csrc/simt.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.simt.mini import floats, mini

# args.in: 32 lanes x (4 registers of a, 2 of b), as floats' bits; out: 32 lanes x 4 of d.
MMA = """float d[4]; uint32_t a[4], b[2];
  for (int i = 0; i < 4; ++i) a[i] = args.in.load(6 * t + i);
  for (int i = 0; i < 2; ++i) b[i] = args.in.load(6 * t + 4 + i);
  for (int i = 0; i < 4; ++i) d[i] = args.out.load(4 * t + i);
  mma_m16n8k16<TYPE>(d, a, b);
  for (int i = 0; i < 4; ++i) args.out.store(4 * t + i, d[i]);"""


def a_position(lane: int, i: int) -> tuple[int, int]:
    """Row and column of element a_i, 0 <= i < 8, of m16n8k16."""
    row = lane >> 2 if (0 <= i < 2 or 4 <= i < 6) else (lane >> 2) + 8
    column = (lane % 4) * 2 + (i & 1) + (8 if i >= 4 else 0)
    return row, column


def b_position(lane: int, i: int) -> tuple[int, int]:
    """Row and column of element b_i, 0 <= i < 4, of m16n8k16."""
    return (lane % 4) * 2 + (i & 1) + (8 if i >= 2 else 0), lane >> 2


def c_position(lane: int, i: int) -> tuple[int, int]:
    """Row and column of element c_i, 0 <= i < 4, of m16n8."""
    return (lane >> 2) + (0 if i < 2 else 8), (lane % 4) * 2 + (i & 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_mma_of_16_bit_floats(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    a = torch.randint(-8, 9, (16, 16), generator=generator).to(dtype)
    b = torch.randint(-8, 9, (16, 8), generator=generator).to(dtype)
    c = torch.randint(-99, 99, (16, 8), generator=generator).float()
    halves = torch.zeros(32, 12, dtype=dtype)
    for lane in range(32):
        for i in range(8):
            halves[lane, i] = a[a_position(lane, i)]
        for i in range(4):
            halves[lane, 8 + i] = b[b_position(lane, i)]
    out = torch.tensor([[c[c_position(t, i)] for i in range(4)] for t in range(32)])
    name = "BF16" if dtype is torch.bfloat16 else "F16"
    given = halves.view(torch.int32).contiguous()
    result = mini(MMA.replace("TYPE", name), given, out, types=("uint32_t", "float"))
    expected = a.float() @ b.float() + c  # small integers: exact in every order
    got = torch.zeros(16, 8)
    for lane in range(32):
        for i in range(4):
            got[c_position(lane, i)] = out[lane, i]
    assert torch.equal(got, expected)
    assert result.counters["mma"] == 1 and not result.findings


def test_mma_of_signed_bytes() -> None:
    generator = torch.Generator().manual_seed(2)
    a = torch.randint(-128, 128, (16, 32), generator=generator).to(torch.int8)
    b = torch.randint(-128, 128, (32, 8), generator=generator).to(torch.int8)
    packed = torch.zeros(32, 24, dtype=torch.int8)
    for lane in range(32):
        group, thread = lane >> 2, lane % 4
        for i in range(16):
            row = group if (i < 4 or 8 <= i < 12) else group + 8
            packed[lane, i] = a[row, thread * 4 + (i & 3) + (16 if i >= 8 else 0)]
        for i in range(8):
            packed[lane, 16 + i] = b[thread * 4 + (i & 3) + (16 if i >= 4 else 0), group]
    out = torch.zeros(32, 4, dtype=torch.int32)
    body = MMA.replace("float d", "int32_t d").replace("mma_m16n8k16<TYPE>", "mma_m16n8k32_s8")
    mini(body, packed.view(torch.int32).contiguous(), out, types=("uint32_t", "int32_t"))
    expected = a.int() @ b.int()
    for lane in range(32):
        for i in range(4):
            assert out[lane, i] == expected[c_position(lane, i)]


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix(count: int, transposed: bool) -> None:
    """Thread t of a plain load holds elements 2 (t % 4) and the next of row t / 4."""
    name = "ldmatrix_transposed" if transposed else "ldmatrix"
    body = f"""FLASHVL_SHARED(uint16_t, s, 256);
      for (int i = 0; i < 8; ++i) s.store(8 * t + i, args.in.load(8 * t + i));
      sync_warp();
      uint32_t r[{count}];
      {name}(r, s + 8 * (t % {8 * count}));
      for (int i = 0; i < {count}; ++i) args.out.store({count} * t + i, r[i]);"""
    matrices = torch.arange(256, dtype=torch.int16).reshape(4, 8, 8)
    out = torch.zeros(32, count, dtype=torch.int32)
    result = mini(body, matrices, out, types=("uint16_t", "uint32_t"))
    got = out.contiguous().view(torch.int16).reshape(32, count, 2)
    for lane in range(32):
        for m in range(count):
            for e in range(2):
                row, column = lane // 4, 2 * (lane % 4) + e
                if transposed:
                    row, column = column, row
                assert got[lane, m, e] == matrices[m, row, column]
    assert not result.findings
    assert result.counters["ldmatrix"] == 1


def test_shuffles_and_votes() -> None:
    body = """const float v = args.in.load(t);
      args.out.store(t, shuffle_xor(v, 5)); args.out.store(32 + t, shuffle_down(v, 4));
      args.out.store(64 + t, shuffle_idx(v, 7));
      args.out.store(96 + t, (ballot(t % 3 == 0) >> t & 1) + 2 * any(t == 9) + 4 * all(t < 32));"""
    x, out = floats(32), torch.zeros(128)
    assert not mini(body, x, out).findings
    lanes = torch.arange(32)
    assert torch.equal(out[:32], x[lanes ^ 5])
    assert torch.equal(out[32:64], x[torch.where(lanes < 28, lanes + 4, lanes)])
    assert torch.equal(out[64:96], x[7].expand(32))
    assert torch.equal(out[96:], (lanes % 3 == 0).float() + 6)


@pytest.mark.parametrize(
    ("index", "vector", "wavefronts", "conflicts"),
    [
        ("t", 1, 1, 0),
        ("0", 1, 1, 0),  # one word for all: a broadcast
        ("2 * t", 1, 2, 1),
        ("32 * t", 1, 32, 31),
        ("33 * t", 1, 1, 0),
        ("4 * t", 4, 4, 0),  # 512 bytes need four
        ("32 * t", 4, 32, 28),
    ],
)
def test_bank_conflicts(index: str, vector: int, wavefronts: int, conflicts: int) -> None:
    body = f"""const Shared<float> s = dynamic_shared<float>();
      for (int i = t; i < 1100; i += 32) s.store(i, 0.0f);
      sync_block();
      args.out.store(t, s.load<{vector}>({index})[0]);"""
    result = mini(body, floats(8), torch.zeros(32), shared_bytes=4400)
    stores = -(-1100 // 32)
    assert result.counters["shared_wavefronts"] == stores + wavefronts
    assert result.counters["bank_conflicts"] == conflicts
    assert not result.findings


def test_ldmatrix_conflicts() -> None:
    """Rows 128 bytes apart meet in one bank; 16 bytes more a row, and none do."""
    body = """const Shared<uint16_t> s = dynamic_shared<uint16_t>();
      for (int i = t; i < 2304; i += 32) s.store(i, 0);
      sync_block(); uint32_t r[4]; ldmatrix(r, s + PITCH * t);"""
    for pitch, conflicts in ((64, 28), (72, 0)):
        result = mini(
            body.replace("PITCH", str(pitch)), floats(8), torch.zeros(8), shared_bytes=4608
        )
        assert result.counters["bank_conflicts"] == conflicts


@pytest.mark.parametrize(
    ("index", "vector", "sectors", "asked"),
    [("t", 1, 4, 128), ("0", 1, 1, 4), ("8 * t", 1, 32, 128), ("4 * t", 4, 16, 512)],
)
def test_sectors(index: str, vector: int, sectors: int, asked: int) -> None:
    x = torch.zeros(300)
    x = x[(-x.data_ptr() // 4) % 8 :][:264]  # begins a sector
    result = mini(f"args.in.load<{vector}>({index});", x, torch.zeros(8))
    assert result.counters["read_sectors"] == sectors
    assert result.counters["global_read_bytes"] == asked
    assert result.counters["global_reads"] == 1


def test_unique_sectors_are_counted_once_a_launch() -> None:
    result = mini("args.in.load(t);", floats(32), torch.zeros(8), blocks=5)
    assert result.counters["read_sectors"] == 5 * result.counters["unique_read_sectors"]


@pytest.mark.parametrize("name", ["bf16", "f16"])
def test_conversions_against_pytorch(name: str) -> None:
    dtype = torch.bfloat16 if name == "bf16" else torch.float16
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    back = torch.zeros(2**16)
    body = f"""for (int64_t i = t; i < args.n; i += 256)
      args.out.store(i, float_from_{name}(args.in.load(i)));"""
    mini(body, every, back, threads=256, types=("uint16_t", "float"))
    torch.testing.assert_close(back, every.view(dtype).float(), rtol=0, atol=0, equal_nan=True)
    values = torch.cat([numbers(), back[back.isfinite()]])
    rounded = torch.zeros(values.numel(), dtype=torch.int16)
    body = f"""for (int64_t i = t; i < args.n; i += 256)
      args.out.store(i, {name}_from_float(args.in.load(i)));"""
    mini(body, values, rounded, threads=256, types=("float", "uint16_t"))
    assert torch.equal(rounded, values.to(dtype).view(torch.int16))


def numbers() -> Tensor:
    """Ties, subnormals, overflow, and a spread of exponents."""
    generator = torch.Generator().manual_seed(3)
    spread = torch.randn(4000, generator=generator) * 10.0 ** torch.randint(
        -9, 6, (4000,), generator=generator
    )
    half, quarter = 2.0**-11, 2.0**-8
    ties = [1 + half, 1 + 3 * half, 1 + quarter, 1 + 3 * quarter, 2.0**-25, 3 * 2.0**-25]
    edges = torch.tensor([*ties, 65519.9, 65520.0, 2.0**-24, 0.0, float("inf")])
    return torch.cat([spread, edges, -edges])
