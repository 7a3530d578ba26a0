"""Launch plans of attention for the figures of five GPUs."""

from __future__ import annotations

import pytest
import torch

from flashvl_kernels.cuda import (
    canvas,
    causal_attention,
    decode_attention,
    flash_plan,
    stitched_tile_attention,
    tile_attention,
)
from flashvl_kernels.cuda.device import A100, B200, DEVICES, H100, L4, RTX_4090, Device
from flashvl_kernels.tiles import TileGrid

STATIC_BYTES = 1024
"""More than what the kernels take beside the dynamic part."""


@pytest.mark.parametrize("itemsize", [2, 4])
def test_every_head_dimension_has_a_kernel(itemsize: int) -> None:
    for channels in range(1, flash_plan.MAX_HEAD_DIM + 1):
        dim = flash_plan.padded(channels, itemsize)
        assert channels <= dim and dim in flash_plan.HEAD_DIMS[itemsize]
    with pytest.raises(ValueError, match="the head dimension is 257; the CUDA kernels take at"):
        flash_plan.padded(257, itemsize)


def test_siglip_and_aimv2_pad_to_what_their_heads_need() -> None:
    assert [flash_plan.padded(d, 2) for d in (64, 72, 80, 128)] == [64, 80, 80, 128]


@pytest.mark.parametrize("device", DEVICES, ids=lambda d: d.name)
@pytest.mark.parametrize("itemsize", [2, 4])
def test_blocks_fit_the_shared_memory_of_every_device(device: Device, itemsize: int) -> None:
    limit = device.shared_bytes_per_block - STATIC_BYTES
    for dim in flash_plan.HEAD_DIMS[itemsize]:
        shape = flash_plan.shape_of(dim, itemsize)
        blend = shape.rows * dim * 4
        assert shape.shared_bytes + blend <= limit
        assert decode_attention.shared_bytes(dim, itemsize) <= limit


@pytest.mark.parametrize("device", DEVICES, ids=lambda d: d.name)
@pytest.mark.parametrize("dim", [64, 80, 128])
def test_two_blocks_a_multiprocessor_for_the_models(device: Device, dim: int) -> None:
    """One computes while the other waits for its keys; registers allow two."""
    shape = flash_plan.shape_of(dim, 2)
    assert 2 * (shape.shared_bytes + STATIC_BYTES) <= device.shared_bytes_per_multiprocessor


def test_siglip_fills_the_device() -> None:
    """1024 tokens of 16 heads: 8 blocks of 128 rows a head."""
    shape = flash_plan.shape_of(80, 2)
    assert tile_attention.plan(1, 1024, 16, False, shape) == (8, 16, 1)
    assert tile_attention.plan(4, 1024, 16, False, shape) == (32, 16, 1)


def test_packed_tiles_get_a_broken_block_each() -> None:
    shape = flash_plan.shape_of(80, 2)
    lengths = [1024, 256, 1024, 1, 0]
    needed = sum(-(-n // shape.rows) for n in lengths)
    grid = tile_attention.plan(len(lengths), sum(lengths), 16, True, shape)
    assert needed <= grid[0] <= needed + len(lengths)
    assert tile_attention.plan(10**6, 3, 1, True, shape)[0] == 3


def test_grouped_heads_are_rows_of_one_block() -> None:
    """Qwen2: 6 query heads a KV head, so 300 tokens are 1800 rows of 64 a block."""
    shape = flash_plan.shape_of(128, 2)
    assert causal_attention.plan(1, 300, 12, 2, shape) == (29, 2, 1)


@pytest.mark.parametrize(
    ("device", "splits"), [(H100, 64), (A100, 64), (L4, 58), (RTX_4090, 64), (B200, 64)]
)
def test_one_long_sequence_is_split_over_the_device(device: Device, splits: int) -> None:
    found = decode_attention.plan(1, 4096, 12, 2, 64, device)
    assert (found.splits, found.row_blocks, found.grid) == (splits, 1, (splits, 2))


@pytest.mark.parametrize("device", DEVICES, ids=lambda d: d.name)
def test_a_batch_that_fills_the_device_is_not_split(device: Device) -> None:
    assert decode_attention.plan(256, 4096, 12, 2, 64, device).splits == 1


def test_a_short_cache_has_no_more_splits_than_steps() -> None:
    assert decode_attention.plan(1, 300, 12, 2, 64, H100).splits == 5
    assert decode_attention.plan(1, 0, 12, 2, 64, H100).splits == 1


@pytest.mark.parametrize("rule", ["crop", "mean", "linear"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (2, 2), (3, 4)])
@pytest.mark.parametrize(
    ("tile", "overlap", "border"), [(6, 0, 0), (6, 3, 2), (5, 1, 0), (4, 2, 1)]
)
def test_stretches_cover_the_canvas(
    rule: str, shape: tuple[int, int], tile: int, overlap: int, border: int
) -> None:
    grid = TileGrid(*shape, tile, overlap, rule, border)
    for tiles, length in zip(shape, grid.canvas, strict=True):
        lengths = stitched_tile_attention.stretches(tiles, grid)
        assert sum(lengths) == length and min(lengths) >= 0
        assert len(lengths) == (2 * tiles - 1 if canvas.blends(grid) else tiles)


def test_crop_computes_no_query_twice() -> None:
    """2x2 tiles of 1024 with an eighth of overlap: 3600 of 4096 queries, 15 blocks a tile."""
    grid = TileGrid(2, 2, 32, 4)
    assert stitched_tile_attention.plan(grid, 64) == 4 * 15
    assert sum(stitched_tile_attention.stretches(2, grid)) ** 2 == grid.patches_read


def test_decode_counters_start_at_zero() -> None:
    q = torch.zeros(2, 12, 128, dtype=torch.bfloat16)
    cache = torch.zeros(2, 2, 4096, 128, dtype=torch.bfloat16)
    prepared = decode_attention.prepare((q, cache, cache, torch.tensor([9, 4096]), None), H100)
    assert int(prepared.tensors["counters"].abs().sum()) == 0
