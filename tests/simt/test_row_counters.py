"""What the ops that move rows read and write, against the bytes that must move."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from flashvl_kernels import numerics, simt
from flashvl_kernels.cuda.device import H100, L4, Device
from flashvl_kernels.spec import REGISTRY
from tests.simt.test_ops import flat_call, normal, wrong

pytestmark = pytest.mark.skipif(simt.unavailable() is not None, reason=str(simt.unavailable()))


def prompt(tokens: int, *images: tuple[int, int]) -> Tensor:
    """Ids with images of `length` tokens at `start`."""
    ids = torch.arange(tokens)
    for start, length in images:
        ids[start : start + length] = -201
        ids[start] = -200
    return ids


def rope(rows: int, heads: int, kv_heads: int, dim: int, dtype: torch.dtype) -> tuple[Any, ...]:
    """Arguments of rope_qkv with tables of `dtype`, positions backwards."""
    cos, sin = (normal(rows + 3, dim // 2).to(dtype) for _ in range(2))
    qkv = normal(rows, (heads + 2 * kv_heads) * dim)
    return qkv, cos, sin, torch.arange(rows).flip(0) + 3, heads, kv_heads


def cached(rows: int, slots: list[int]) -> tuple[Any, ...]:
    """Qwen2's heads into a cache of two sequences whose tokens lie outside of its heads."""
    k, v = (normal(2, 16, 2, 128).transpose(1, 2) for _ in range(2))
    return *rope(rows, 12, 2, 128, torch.float32), k, v, torch.tensor(slots)


# At the widths of the models, aligned: schema arguments.
CALLS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "stitch_tiles, mean": ("stitch_tiles", (normal(4, 64, 1536), 2, 2, 8, 2, "mean", 0)),
    "stitch_tiles, linear in a border": (
        "stitch_tiles",
        (normal(4, 64, 1152), 2, 2, 8, 4, "linear", 1),
    ),
    "stitch_tiles, crop": ("stitch_tiles", (normal(6, 36, 1536), 2, 3, 6, 2, "crop", 0)),
    "stitch_tiles, CLS dropped": (
        "stitch_tiles",
        (normal(2, 17, 1536)[:, 1:], 1, 2, 4, 1, "crop", 0),
    ),
    "merge_image_tokens, two images": (
        "merge_image_tokens",
        (normal(60, 1536), prompt(60, (3, 20), (40, 12)), normal(32, 1536)),
    ),
    "rope_qkv, Qwen2": ("rope_qkv", rope(12, 12, 2, 128, torch.float32)),
    "rope_qkv, heads of 64": ("rope_qkv", rope(12, 14, 2, 64, torch.float32)),
    "rope_qkv, tables in bf16": ("rope_qkv", rope(12, 12, 2, 128, torch.bfloat16)),
    "rope_qkv_cached, Qwen2": ("rope_qkv_cached", cached(12, list(range(10, 22)))),
    "rope_qkv_cached, padding": ("rope_qkv_cached", cached(12, [-1] * 6 + list(range(6)))),
}


@pytest.mark.parametrize("name", CALLS)
def test_every_byte_comes_from_memory_once_in_whole_sectors(name: str) -> None:
    op, flat = CALLS[name]
    spec = REGISTRY[op]
    result = simt.call(spec, flat, L4)
    assert not wrong(spec, flat, result), "\n".join(wrong(spec, flat, result))
    assert result.bytes_from_memory <= 1.05 * spec.cost(*flat).bytes
    assert result.sector_efficiency >= 0.95
    assert result.counters["bank_conflicts"] == 0


@pytest.mark.parametrize("name", [name for name in CALLS if name.startswith(("stitch", "rope"))])
def test_features_move_once_in_16_byte_accesses(name: str) -> None:
    """No cache is needed for it. Of rope_qkv, only a row's position and slot are one number."""
    op, flat = CALLS[name]
    result = simt.call(REGISTRY[op], flat, L4)
    counters = result.counters
    assert result.bytes_moved <= 1.05 * REGISTRY[op].cost(*flat).bytes
    narrow = counters["global_reads"] + counters["global_writes"] - counters["wide_accesses"]
    per_row = {"stitch_tiles": 0, "rope_qkv": 1, "rope_qkv_cached": 2}[op]
    assert narrow <= per_row * flat[0].shape[0]


def test_only_ids_are_read_by_narrow_accesses() -> None:
    """A row a block: its id, and for a sentinel those before it, 32 a warp."""
    flat = CALLS["merge_image_tokens, two images"][1]
    result = simt.call(REGISTRY["merge_image_tokens"], flat, L4)
    counters = result.counters
    assert counters["blocks"] == 60
    narrow = counters["global_reads"] + counters["global_writes"] - counters["wide_accesses"]
    before = [token for token, number in enumerate(flat[1].tolist()) if number < 0]
    assert narrow == 60 + sum(-(-count // 32) for count in before)
    assert counters["wide_accesses"] == 60 * 2 * 192 // 32


def test_blocks_of_text_count_no_sentinels() -> None:
    spec = REGISTRY["merge_image_tokens"]
    flat = (normal(300, 64), prompt(300), normal(0, 64))
    result = simt.call(spec, flat, L4)
    assert not wrong(spec, flat, result)
    assert result.counters["global_read_bytes"] == 300 * (64 * 2 + 8)


def test_a_block_with_more_rows_than_threads() -> None:
    """One multiprocessor with room for one block: it ranks 700 rows in three rounds."""
    spec = REGISTRY["merge_image_tokens"]
    one = Device("one", 90, 1, 256, H100.shared_bytes_per_block, H100.shared_bytes_per_block)
    ids = prompt(700, (10, 4), (250, 300), (600, 1))
    flat = (normal(700, 40), ids, normal(303, 40))  # two sentinels more than images
    result = simt.call(spec, flat, one)
    assert result.launches[0].grid == (1, 1, 1)
    assert not wrong(spec, flat, result), "\n".join(wrong(spec, flat, result))


@pytest.mark.parametrize("channels", [1538, 1537])
def test_odd_rows_are_copied_by_the_widest_word_that_fits(channels: int) -> None:
    """Two or four bytes a lane still fill sectors but at the ends of a row."""
    spec = REGISTRY["stitch_tiles"]
    flat = (normal(2, 16, channels), 1, 2, 4, 1, "crop", 0)
    result = simt.call(spec, flat, L4)
    assert not wrong(spec, flat, result)
    assert result.launches[0].kernel.expression == (
        "stitch_tiles_kernel<float, 1, false>"
        if channels % 2 == 0
        else "stitch_tiles_kernel<BF16, 1, false>"
    )
    assert result.bytes_from_memory <= 1.05 * spec.cost(*flat).bytes
    assert flat[0].dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_strided_tables_leave_the_features_their_vectors(dtype: torch.dtype) -> None:
    """Tables cut out of an interleaved one are read where they lie: they may be long."""
    spec = REGISTRY["rope_qkv"]
    qkv, cos, sin, *rest = rope(5, 3, 1, 64, dtype)
    cos, sin = torch.stack((cos, sin), -1).unbind(-1)
    flat = (qkv, cos, sin, *rest)
    result = simt.call(spec, flat, L4)
    assert not wrong(spec, flat, result), "\n".join(wrong(spec, flat, result))
    assert result.launches[0].kernel.expression == "rope_qkv_kernel<BF16, 8>"
    assert result.launches[0].arguments.cos.row == 64


@pytest.mark.parametrize(
    "name", ["too few image rows", "too many image rows", "another negative id"]
)
def test_ids_that_the_cpu_would_refuse(name: str) -> None:
    """Nothing looks at their values on a GPU: the result is the reference's, no address is made."""
    spec = REGISTRY["merge_image_tokens"]
    flat = flat_call(spec, next(s for s in spec.samples if s.name == name), torch.bfloat16)
    assert not wrong(spec, flat, simt.call(spec, flat, L4))


def test_positions_and_slots_out_of_range_are_masked() -> None:
    """Nothing looks at their values on a GPU: other rows are right, and no address is made."""
    spec = REGISTRY["rope_qkv_cached"]
    flat = cached(6, [0, 1, -1, 32, -(2**40), 2**40])
    flat[3][:] = torch.tensor([4, 5, 6, -1, 9, 2**40])
    result = simt.call(spec, flat, L4)
    assert not result.findings
    good = (*flat[:3], flat[3].clamp(0, 8), *flat[4:8], torch.tensor([0, 1, -1, -1, -1, -1]))
    q, *_, k, v = numerics.results(spec, spec.reference, good)
    q[3:] = 0.0  # rotated by a table that is not there
    got = (*result.outputs, *result.mutated[-2:])
    for mine, expected in zip(got, (q, k, v), strict=True):
        torch.testing.assert_close(mine, expected, atol=2**-6, rtol=2**-7)
