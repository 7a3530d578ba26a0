"""Launch plans of the ops that move rows, for the figures of five GPUs."""

from __future__ import annotations

import pytest
import torch

from flashvl_kernels.cuda import row_blocks, stitch_tiles
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
