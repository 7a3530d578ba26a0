"""Launch plans of the ops that move rows, for the figures of five GPUs."""

from __future__ import annotations

import pytest
import torch

from flashvl_kernels.cuda import merge_image_tokens, row_blocks, stitch_tiles
from flashvl_kernels.cuda.device import A100, B200, DEVICES, H100, L4, RTX_4090, Device
from flashvl_kernels.cuda.row_blocks import RowBlocks, Word
from flashvl_kernels.tiles import TileGrid


@pytest.mark.parametrize("device", DEVICES, ids=lambda d: d.name)
def test_rows_of_the_models_leave_few_threads_idle(device: Device) -> None:
    """1536 channels are 192 vectors, 2 for each of three warps; 1152 are 144, in three too."""
    assert row_blocks.blocks(3600, 192, device) == RowBlocks(1, 96, 2)
    assert row_blocks.blocks(3600, 144, device) == RowBlocks(1, 96, 2)
    assert row_blocks.blocks(3600, 448, device) == RowBlocks(1, 224, 1)
    assert row_blocks.blocks(3600, 576, device) == RowBlocks(2, 160, 1)


@pytest.mark.parametrize(
    ("device", "found"),
    [
        (H100, RowBlocks(3, 32, 1)),
        (A100, RowBlocks(2, 64, 1)),
        (L4, RowBlocks(1, 96, 1)),
        (RTX_4090, RowBlocks(2, 64, 1)),
        (B200, RowBlocks(3, 32, 1)),
    ],
)
def test_few_rows_are_spread_over_the_device(device: Device, found: RowBlocks) -> None:
    assert row_blocks.blocks(64, 192, device) == found


@pytest.mark.parametrize("device", DEVICES, ids=lambda d: d.name)
@pytest.mark.parametrize("rows", [1, 57, 300, 10**6])
@pytest.mark.parametrize("vectors", [1, 6, 33, 192, 513, 8960, 10**5])
def test_every_row_is_covered(device: Device, rows: int, vectors: int) -> None:
    found = row_blocks.blocks(rows, vectors, device)
    assert found.parts * found.along * row_blocks.VECTORS >= vectors
    assert (found.parts - 1) * found.along * row_blocks.VECTORS < vectors
    assert found.along % 32 == 0 and found.along * found.together <= row_blocks.THREADS
    assert found.parts <= 65535
    (x, parts, _), shape = stitch_tiles.plan(rows, vectors, device)
    assert x * shape.together >= rows and parts == shape.parts


def test_the_widest_word_that_divides_every_place() -> None:
    assert row_blocks.word_of(2, (1536, 1536), (256, 16)) == Word("float", 4, 4)
    assert row_blocks.word_of(2, (1538, 1538), (256, 16)) == Word("float", 4, 1)
    assert row_blocks.word_of(2, (1536, 1536), (256, 18)) == Word("BF16", 2, 1)
    assert row_blocks.word_of(4, (7, 7), (256, 16)) == Word("float", 4, 1)


def test_a_copy_counts_in_words_and_a_blend_in_elements() -> None:
    x = torch.zeros(4, 16, 24, dtype=torch.bfloat16)
    for rule, channels, name in [("crop", 12, "float, 4, false"), ("mean", 24, "BF16, 8, true")]:
        grid = TileGrid(2, 2, 4, 2, rule)
        (launch,) = stitch_tiles.prepare((x, *grid.flat()), H100).launches
        assert launch.kernel.expression == f"stitch_tiles_kernel<{name}>"
        assert launch.arguments.channels == channels
        assert launch.arguments.canvas.tile_stride == 16 * channels
        assert launch.arguments.positions == grid.canvas_len


def test_a_grid_without_overlap_is_a_copy() -> None:
    for grid in (TileGrid(2, 2, 4, 0, "mean"), TileGrid(1, 1, 4, 2, "linear")):
        assert not stitch_tiles.blends(grid)
    assert stitch_tiles.blends(TileGrid(1, 2, 4, 2, "mean"))


def test_a_prompt_is_merged_two_rows_a_block() -> None:
    """300 rows of 1536 channels: 150 blocks, on an H100 one for every multiprocessor and more."""
    found = merge_image_tokens.plan(300, 192, H100)
    assert (found.grid, found.rows_a_block) == ((150, 1, 1), 2)
    assert found.shape == RowBlocks(1, 96, 2)


@pytest.mark.parametrize(
    ("device", "at_once"), [(H100, 792), (A100, 648), (L4, 348), (RTX_4090, 768), (B200, 888)]
)
def test_a_merge_has_no_more_blocks_than_run_at_once(device: Device, at_once: int) -> None:
    found = merge_image_tokens.plan(100_000, 192, device)
    assert 0.9 * at_once <= found.grid[0] <= at_once


@pytest.mark.parametrize("device", DEVICES, ids=lambda d: d.name)
@pytest.mark.parametrize("rows", [1, 57, 300, 10**6])
@pytest.mark.parametrize("vectors", [1, 33, 192, 8960])
def test_every_row_is_merged(device: Device, rows: int, vectors: int) -> None:
    found = merge_image_tokens.plan(rows, vectors, device)
    assert (found.grid[0] - 1) * found.rows_a_block < rows <= found.grid[0] * found.rows_a_block
    assert found.rows_a_block % found.shape.together == 0


def test_a_merge_reads_rows_and_ids_where_they_lie() -> None:
    embeds = torch.zeros(3, 6, 20, dtype=torch.bfloat16)[..., :16]
    ids = torch.zeros(3, 12, dtype=torch.int64)[:, ::2]
    prepared = merge_image_tokens.prepare((embeds, ids, embeds[0]), H100)
    assert prepared.tensors["embeds"].data_ptr() == embeds.data_ptr()
    (launch,) = prepared.launches
    assert launch.kernel.expression == "merge_image_tokens_kernel<float, 1>"
    assert (launch.arguments.columns, launch.arguments.image_stride) == (8, 10)
    assert launch.arguments.ids_stride == 2
