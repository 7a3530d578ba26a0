"""Launch plans of the ops that move rows, for the figures of five GPUs."""

from __future__ import annotations

import pytest
import torch

from flashvl_kernels.cuda import (
    canvas,
    merge_image_tokens,
    rope_qkv,
    rope_qkv_cached,
    row_blocks,
    stitch_tiles,
)
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
        assert not canvas.blends(grid)
    assert canvas.blends(TileGrid(1, 2, 4, 2, "mean"))


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


@pytest.mark.parametrize("device", DEVICES, ids=lambda d: d.name)
def test_a_warp_rotates_a_row_of_qwen2(device: Device) -> None:
    """16 heads in fours of 8 vectors are 32 threads; a decode step is one warp."""
    assert rope_qkv.plan(1, 16, 8, device) == (1, 32)
    assert rope_qkv.plan(4096, 16, 8, device) == (512, 256)


@pytest.mark.parametrize(
    ("device", "found"),
    [
        (H100, (150, 64)),
        (A100, (150, 64)),
        (L4, (75, 128)),
        (RTX_4090, (150, 64)),
        (B200, (150, 64)),
    ],
)
def test_a_prompt_is_rotated_by_all_multiprocessors(device: Device, found: tuple[int, int]) -> None:
    assert rope_qkv.plan(300, 16, 8, device) == found


@pytest.mark.parametrize("device", DEVICES, ids=lambda d: d.name)
@pytest.mark.parametrize("rows", [1, 33, 10**6])
@pytest.mark.parametrize(("heads", "vectors"), [(3, 1), (16, 8), (9, 5), (48, 64)])
def test_every_head_is_rotated(device: Device, rows: int, heads: int, vectors: int) -> None:
    grid, threads = rope_qkv.plan(rows, heads, vectors, device)
    units = rows * -(-heads // rope_qkv.HEADS) * vectors
    assert grid * threads >= units > (grid - 1) * threads
    assert threads % 32 == 0


def test_keys_and_values_are_a_cache_of_one_sequence() -> None:
    tables = torch.zeros(9, 32), torch.zeros(9, 32)
    qkv = torch.zeros(5, 6 * 64, dtype=torch.bfloat16)
    (launch,) = rope_qkv.prepare((qkv, *tables, None, 2, 2), H100).launches
    assert launch.kernel.expression == "rope_qkv_kernel<BF16, 8>"
    k = launch.arguments.k
    assert (k.head, k.token, k.channel) == (64, 128, 1)
    assert (launch.arguments.capacity, launch.arguments.slot_count) == (5, 5)
    assert not launch.arguments.positions and not launch.arguments.slots


def test_channels_apart_in_the_cache_take_single_elements() -> None:
    tables = torch.zeros(9, 32), torch.zeros(9, 32)
    qkv = torch.zeros(5, 6 * 64, dtype=torch.bfloat16)
    wide = torch.zeros(2, 2, 8, 128, dtype=torch.bfloat16)
    slots = torch.arange(5)
    for cache, name in [(wide[..., :64], "BF16, 8"), (wide[..., ::2], "BF16, 1")]:
        flat = (qkv, *tables, None, 2, 2, cache, cache, slots)
        (launch,) = rope_qkv_cached.prepare(flat, H100).launches
        assert launch.kernel.expression == f"rope_qkv_kernel<{name}>"
        assert launch.arguments.slot_count == 16


def test_tables_are_read_where_they_lie() -> None:
    """By vectors where each row of channels is aligned; two elements apart, one by one."""
    table = torch.zeros(9, 64)
    for each, vectors in [(table, 1), (table[:, ::2], 0), (table[:, 1:33], 0), (table[::2], 1)]:
        found = rope_qkv._table(each)
        assert (found.wide, found.narrow) == (each.data_ptr(), None)
        assert (found.row, found.channel, found.vectors) == (*each.stride(), vectors)
    assert rope_qkv._table(table.half()).narrow is not None


def test_what_stitch_tiles_refuses() -> None:
    """Places on a canvas are 32 bits."""
    x = torch.empty(1, 1, device="meta")
    assert stitch_tiles.why_not(x, *TileGrid(2**15, 2**15, 1).flat()) is None
    refused = stitch_tiles.why_not(x, *TileGrid(2**15, 2**16, 1).flat())
    assert "32768 x 65536 patches" in str(refused)
