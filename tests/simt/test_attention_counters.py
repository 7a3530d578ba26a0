"""What the attention kernels move and multiply, against what their tiling predicts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from flashvl_kernels import simt
from flashvl_kernels.cuda import decode_attention, flash_plan
from flashvl_kernels.cuda.device import H100, L4
from flashvl_kernels.cuda.launch import ceil_div
from flashvl_kernels.spec import REGISTRY
from tests.simt.test_ops import flat_call, normal, wrong

pytestmark = pytest.mark.skipif(simt.unavailable() is not None, reason=str(simt.unavailable()))

OPS = ("tile_attention", "causal_attention", "stitched_tile_attention", "decode_attention")


def cache(sequences: int, heads: int, capacity: int, channels: int) -> tuple[Tensor, Tensor]:
    shape = sequences, heads, capacity, channels
    return normal(*shape), normal(*shape)


@pytest.mark.parametrize("dtype", simt.DTYPES)
@pytest.mark.parametrize("op", OPS)
def test_no_access_to_shared_memory_meets_a_bank_twice(op: str, dtype: str) -> None:
    """Typical calls, 72 channels among them, and one of several blocks of keys."""
    spec = REGISTRY[op]
    for sample in spec.samples:
        if sample.kind != "typical" and "across" not in sample.name:
            continue
        result = simt.call(spec, flat_call(spec, sample, simt.DTYPES[dtype]))
        assert result.counters["bank_conflicts"] == 0, sample.name


@pytest.mark.parametrize("channels", [64, 80, 128])
def test_tiles_move_what_their_blocks_predict(channels: int) -> None:
    """Queries once, keys and values once a block of rows; all accesses 16 bytes, whole sectors."""
    tokens, heads = 150, 2
    q, k, v = (normal(1, tokens, heads, channels) for _ in range(3))
    flat = (q, k, v, None, None)
    result = simt.call(REGISTRY["tile_attention"], flat)
    counters, shape = result.counters, flash_plan.shape_of(channels, 2)
    blocks = ceil_div(tokens, shape.rows)
    row = heads * channels * 2
    assert counters["global_read_bytes"] == (1 + 2 * blocks) * tokens * row
    assert counters["global_write_bytes"] == tokens * row
    assert counters["wide_accesses"] == counters["global_reads"] + counters["global_writes"]
    assert result.sector_efficiency >= 0.95
    assert result.bytes_from_memory == REGISTRY["tile_attention"].cost(*flat).bytes
    # Warps without rows multiply nothing; the others, whole fragments of 16 x 8 x 16.
    warps = shape.threads // 32
    active = sum(
        ceil_div(min(shape.rows, tokens - first), shape.rows // warps)
        for first in range(0, tokens, shape.rows)
    )
    padded_keys = ceil_div(tokens, shape.keys) * shape.keys
    each = 2 * (shape.rows // warps // 16) * (padded_keys // 8) * (channels // 16)
    assert counters["mma"] == heads * active * each


def test_causal_rows_stop_at_their_keys() -> None:
    """160 queries of three heads on one: the blocks of rows read up to their last row's key."""
    queries, group, channels = 160, 3, 128
    k, v = cache(1, 1, queries, channels)
    flat = (normal(1, queries, group, channels), k, v, torch.tensor([queries]), None)
    result = simt.call(REGISTRY["causal_attention"], flat)
    shape = flash_plan.shape_of(channels, 2)
    rows = queries * group
    keys = sum(
        (min(first + shape.rows, rows) - 1) // group + 1 for first in range(0, rows, shape.rows)
    )
    blocks = ceil_div(rows, shape.rows)
    read = rows * channels * 2 + 2 * keys * channels * 2
    lengths = 8 * blocks * (shape.threads // 32)
    assert result.counters["global_read_bytes"] == read + lengths
    assert result.counters["global_read_bytes"] < 0.8 * (blocks * 4 * queries * channels)


def test_crop_reads_no_query_of_a_neighbour() -> None:
    spec = REGISTRY["stitched_tile_attention"]
    shape = 4, 144, 1, 64
    flat: tuple[Any, ...] = (*(normal(*shape) for _ in range(3)), None, 2, 2, 12, 4, "crop", 0)
    result = simt.call(spec, flat)
    assert not wrong(spec, flat, result)
    assert result.bytes_from_memory == spec.cost(*flat).bytes
    assert result.counters["global_write_bytes"] == 20 * 20 * 64 * 2


def test_decode_reads_the_cache_once() -> None:
    """At most 1.05 times the bytes that must move, what blocks leave for the last one included."""
    spec = REGISTRY["decode_attention"]
    flat = (normal(8, 12, 128), *cache(8, 2, 1024, 128), torch.full((8,), 1024), None)
    result = simt.call(spec, flat, L4)
    assert not wrong(spec, flat, result)
    assert result.launches[0].grid[0] > 8
    assert result.bytes_from_memory <= 1.05 * spec.cost(*flat).bytes
    assert result.sector_efficiency >= 0.95


def test_decode_gives_the_same_bits_and_leaves_its_counters_at_zero() -> None:
    """A launch can be replayed with the memory of the one before, as a CUDA graph does."""
    flat = (normal(2, 6, 64), *cache(2, 2, 700, 64), torch.tensor([700, 130]), None)
    prepared = decode_attention.prepare(flat, H100)
    assert prepared.launches[0].grid[0] > 2
    built = simt.module("decode_attention")
    (first,) = (out.clone() for out in simt.run(prepared, built).outputs)
    again = simt.run(prepared, built)
    assert not wrong(REGISTRY["decode_attention"], flat, again)
    assert torch.equal(first, again.outputs[0])
    assert int(prepared.tensors["counters"].abs().sum()) == 0
