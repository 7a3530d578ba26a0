"""rope_qkv against the definition of a rotation, and its cached form against the plain one."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from flashvl_kernels.ops.rope_qkv import rope_qkv


def tables(rows: int, half: int) -> tuple[Tensor, Tensor]:
    angles = torch.arange(rows)[:, None] * 1e4 ** -(torch.arange(half) / half)
    return angles.cos(), angles.sin()


def test_a_pair_of_channels_turns_by_the_angle() -> None:
    """Channel i and channel i + D/2 are the real and imaginary part: the half-split layout."""
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(5, 4 * 6, generator=generator)
    angles = torch.rand(9, 3, generator=generator) * 7
    positions = torch.tensor([8, 0, 3, 3, 1])
    q, k, v = rope_qkv(qkv, angles.cos(), angles.sin(), positions, 2, 1)
    turn = torch.polar(torch.ones(5, 1, 3), angles[positions][:, None])
    split = qkv.view(5, 4, 6)
    numbers = torch.complex(split[..., :3], split[..., 3:]) * turn
    expected = torch.cat((numbers.real, numbers.imag), -1)
    torch.testing.assert_close(q, expected[:, :2])
    torch.testing.assert_close(k, expected[:, 2:3])
    assert torch.equal(v, split[:, 3:])


def test_norms_stay_and_products_depend_on_the_distance_only() -> None:
    cos, sin = tables(60, 8)
    row = torch.randn(1, 3 * 16, generator=torch.Generator().manual_seed(1)).double()

    def at(position: int) -> tuple[Tensor, Tensor]:
        q, k, _ = rope_qkv(row, cos.double(), sin.double(), torch.tensor([position]), 1, 1)
        return q[0, 0], k[0, 0]

    for position in (1, 17, 59):
        # The tables are rounded to fp32, so cos^2 + sin^2 is 1 to within 1e-7.
        assert math.isclose(at(position)[0].norm(), row[0, :16].norm(), rel_tol=1e-6)
    near = at(9)[0] @ at(4)[1]
    far = at(55)[0] @ at(50)[1]
    other = at(55)[0] @ at(49)[1]
    assert math.isclose(near, far, rel_tol=1e-4)
    assert not math.isclose(near, other, rel_tol=1e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_one_rounding(dtype: torch.dtype) -> None:
    """The fp32 result, rounded once: bit for bit."""
    qkv = torch.randn(33, 5 * 80, generator=torch.Generator().manual_seed(2)).to(dtype)
    cos, sin = tables(33, 40)
    for got, wide in zip(
        rope_qkv(qkv, cos, sin, None, 3, 1), rope_qkv(qkv.float(), cos, sin, None, 3, 1),
        strict=True,
    ):  # fmt: skip
        assert torch.equal(got, wide.to(dtype))


def test_the_cached_form_writes_what_the_plain_one_returns_and_nothing_else() -> None:
    generator = torch.Generator().manual_seed(3)
    qkv = torch.randn(5, 6 * 8, generator=generator)
    cos, sin = tables(20, 4)
    positions, slots = torch.tensor([3, 4, 0, 0, 1]), torch.tensor([3, 4, -1, 7, 8])
    k_cache, v_cache = (torch.full((2, 2, 7, 8), 5.0) for _ in range(2))
    with torch.no_grad():
        q = rope_qkv(qkv, cos, sin, positions, 2, 2, (k_cache, v_cache), slots)
    plain_q, k, v = rope_qkv(qkv, cos, sin, positions, 2, 2)
    assert torch.equal(q, plain_q)
    for cache, rows in ((k_cache, k), (v_cache, v)):
        expected = torch.full((2, 2, 7, 8), 5.0)
        for row, (b, s) in {0: (0, 3), 1: (0, 4), 3: (1, 0), 4: (1, 1)}.items():
            expected[b, :, s] = rows[row]
        assert torch.equal(cache, expected)


def test_writes_past_2_to_the_31_land_where_they_should() -> None:
    """The second sequence of the cache starts past element 2^31."""
    stride = 2**31 + 64
    buffers = [torch.empty(stride + 64, dtype=torch.bfloat16) for _ in range(2)]
    k_cache, v_cache = (b.as_strided((2, 1, 4, 8), (stride, 32, 8, 1)) for b in buffers)
    qkv = torch.randn(2, 24, generator=torch.Generator().manual_seed(4)).bfloat16()
    cos, sin = tables(2, 4)
    _, k, v = rope_qkv(qkv, cos, sin, None, 1, 1)
    rope_qkv(qkv, cos, sin, None, 1, 1, (k_cache, v_cache), torch.tensor([1, 7]))
    for cache, rows in ((k_cache, k), (v_cache, v)):
        assert torch.equal(cache[0, :, 1], rows[0])
        assert torch.equal(cache[1, :, 3], rows[1])


def test_a_refused_call_leaves_the_cache_alone() -> None:
    k_cache, v_cache = torch.zeros(1, 1, 4, 8), torch.zeros(1, 1, 4, 8)
    cos, sin = tables(4, 4)
    with pytest.raises(ValueError, match="slots has 4"):
        rope_qkv(torch.ones(2, 24), cos, sin, None, 1, 1, (k_cache, v_cache), torch.tensor([0, 4]))
    assert not k_cache.any() and not v_cache.any()


def test_compiled_writes_reach_the_cache() -> None:
    """torch.compile turns the mutation into a copy and back; the caller must still see it."""
    cos, sin = tables(6, 4)
    qkv = torch.randn(3, 24, generator=torch.Generator().manual_seed(5))
    slots = torch.tensor([0, -1, 5])

    def step(qkv: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return rope_qkv(qkv + 1, cos, sin, None, 1, 1, (k, v), slots) * 2

    eager = [torch.zeros(2, 1, 3, 8) for _ in range(2)]
    compiled = [torch.zeros(2, 1, 3, 8) for _ in range(2)]
    with torch.no_grad():
        expected = step(qkv, *eager)
        got = torch.compile(step, fullgraph=True, backend="aot_eager")(qkv, *compiled)
    torch.testing.assert_close(got, expected)
    for mine, theirs in zip(compiled, eager, strict=True):
        assert torch.equal(mine, theirs) and mine.any()
