"""Attention inside overlapping tiles, written as one stitched canvas, without atomics.

Along each axis the canvas falls into segments with the same owners: each tile's own part and, where
tiles blend, each overlap of two neighbours. A program takes a block of positions of one rectangle
of segments, with the same positions as queries of each tile that covers it (flash.py has the loop
over keys). So a query is computed once, and never where a neighbour owns it. Blends are a second
launch over the rectangles of two or four tiles, which meet in fp32 registers, in a fixed order.
Programs past the end of a smaller rectangle leave at once. Bound by the tensor cores and the
exponentials.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from flashvl_kernels.tiles import TileGrid
from flashvl_kernels.triton import flash, launch, tuned
from flashvl_kernels.triton.dispatch import queue
from flashvl_kernels.triton.expect import Expect
from flashvl_kernels.triton.flash import Block, attend, weighted, write_rows

EXPECT = {"stitched_tile_attention_kernel": Expect(tensor_cores=True)}


@triton.jit
def segment_of(index, tiles, tile, border, before, after, step, BLEND: tl.constexpr):  # type: ignore[no-untyped-def]
    """Where the `index`-th segment of an axis lies: its first tile, how many tiles cover it, its
    start in the first one, and its length. `before` and `after`: what of an inner tile is not its
    own. BLEND counts overlaps as segments, too."""
    first = index
    covers = 1
    if BLEND:
        first = index // 2
        covers = 1 + index % 2
    start = tl.where(first == 0, border, before)
    stop = tile - tl.where(first == tiles - 1, border, after)
    return (
        first,
        covers,
        tl.where(covers == 2, step, start),
        tl.where(covers == 2, tile - step, stop - start),
    )


@triton.jit
def share_of(place, which, covers, overlap, LINEAR: tl.constexpr):  # type: ignore[no-untyped-def]
    """What the `which`-th of `covers` tiles counts at `place` in their segment."""
    lower = tl.full(place.shape, 0.5, tl.float32)
    if LINEAR:
        lower = (2 * place + 1).to(tl.float32) / (2.0 * overlap)
    return tl.where(covers == 1, 1.0, tl.where(which == 1, lower, 1.0 - lower))


@triton.jit
def stitched_tile_attention_kernel(
    q, k, v, y,
    heads, rows, cols, tile, overlap, border, before, after, blocks, scale,
    q_tile, q_token, q_head, q_channel,
    k_tile, k_token, k_head, k_channel,
    v_tile, v_token, v_head, v_channel,
    BLEND: tl.constexpr, LINEAR: tl.constexpr, UNIT: tl.constexpr, D: tl.constexpr,
    HEAD: tl.constexpr, TAIL: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # type: ignore[no-untyped-def] # fmt: skip
    """y [images, canvas rows * canvas columns, heads, D]."""
    program = tl.program_id(0).to(tl.int64)
    head = program % heads
    part = program // heads % blocks
    bands = 2 * rows - 1 if BLEND else rows
    lanes = 2 * cols - 1 if BLEND else cols
    rectangle = program // heads // blocks
    image = rectangle // lanes // bands
    step = tile - overlap
    band = (rectangle // lanes % bands).to(tl.int32)
    lane = (rectangle % lanes).to(tl.int32)
    tile_row, over, top_row, height = segment_of(
        band, rows, tile, border, before, after, step, BLEND
    )
    tile_col, across, left, width = segment_of(lane, cols, tile, border, before, after, step, BLEND)
    if (part * ROWS >= height * width) | (BLEND & (over * across == 1)):
        return

    position = (part * ROWS).to(tl.int32) + tl.arange(0, ROWS)
    inside = position < height * width
    place_row = position // tl.maximum(width, 1)
    place_col = position % tl.maximum(width, 1)
    tokens = tl.full([], tile * tile, tl.int32)
    sums = tl.zeros([ROWS, HEAD], tl.float32)
    sums_tail = tl.zeros([ROWS, TAIL if TAIL else 16], tl.float32)
    for source in range(0, over * across if BLEND else 1):
        below = source // across
        right = source % across
        index = (image * rows + tile_row + below) * cols + tile_col + right
        # The place in the lower (right) tile is a step less than in the upper (left) one.
        query = (top_row - below * step + place_row) * tile + left - right * step + place_col
        _top, total, acc, acc_tail = attend(
            q + index * q_tile * UNIT + head * q_head * UNIT,
            query.to(tl.int64), q_token, q_channel, inside,
            k + index * k_tile * UNIT + head * k_head * UNIT, k_token, k_channel,
            v + index * v_tile * UNIT + head * v_head * UNIT, v_token, v_channel,
            0, tokens, tl.full([ROWS], tile * tile, tl.int32), scale,
            UNIT, D, HEAD, TAIL, ROWS, KEYS,
        )  # fmt: skip
        if BLEND:
            weight = share_of(place_row, below, over, overlap, LINEAR)
            weight *= share_of(place_col, right, across, overlap, LINEAR)
            sums += weighted(acc, total) * weight[:, None]
            if TAIL:
                sums_tail += weighted(acc_tail, total) * weight[:, None]
        else:
            sums = weighted(acc, total)
            if TAIL:
                sums_tail = weighted(acc_tail, total)

    canvas_rows = rows * step + overlap - 2 * border
    canvas_cols = cols * step + overlap - 2 * border
    row = tile_row * step + top_row - border + place_row
    col = tile_col * step + left - border + place_col
    canvas = (row * canvas_cols + col).to(tl.int64)
    y += (image * canvas_rows * canvas_cols * heads + head) * D
    write_rows(y, canvas, heads * D, sums.to(y.dtype.element_ty), inside, 0, HEAD, D)
    if TAIL:
        write_rows(y, canvas, heads * D, sums_tail.to(y.dtype.element_ty), inside, HEAD, TAIL, D)


def blended(rows: int, heads: int, head_dim: int, itemsize: int, device: launch.Device) -> Block:
    """The block of positions that tiles share, which holds two results. On sm_90 8 warps hold 64
    rows of them, in 234 registers at 128 channels, as wgmma's least is; with mma.sync 32 rows of 32
    keys spilled."""
    if itemsize != 2:
        return flash.block(rows, heads, head_dim, itemsize, device)
    wide = device.capability == 90 and sum(flash.split(head_dim, itemsize)) <= 128
    return Block(64, 32, 8, 2) if wide else Block(32, 16, 4, 2)


def longest_part(tiles: int, grid: TileGrid, before: int, after: int) -> int:
    """The most positions of an axis of `tiles` tiles that are one tile's own."""
    if tiles == 1:
        return grid.tile - 2 * grid.border
    edges = max(grid.tile - grid.border - after, grid.tile - before - grid.border)
    return max(edges, grid.tile - before - after if tiles > 2 else 0)


def why_not(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None,
    *flat: int | str,
) -> str | None:
    """A head's results stay in registers."""
    return flash.why_not(q)


def run(q: Tensor, k: Tensor, v: Tensor, scale: float | None, *flat: int | str) -> Tensor:
    """The canvas [B, canvas_len, H, D] of tiles [B*T, t*t, H, D]."""
    grid = TileGrid.from_flat(flat)
    heads, head_dim = q.shape[2:]
    q, factor = flash.scaled(q, scale)
    images = q.shape[0] // grid.tiles
    y = q.new_empty((images, grid.canvas_len, heads, head_dim))
    if y.numel() == 0:
        return y
    blend = grid.rule != "crop" and grid.overlap > 0
    # Of an odd overlap, the middle patch goes to the upper (left) tile.
    before, after = (grid.overlap + 1) // 2, grid.overlap // 2
    if blend:
        before = after = grid.overlap
    parts = [longest_part(tiles, grid, before, after) for tiles in (grid.rows, grid.cols)]
    launch_rectangles(q, k, v, factor, grid, y, (before, after), parts[0] * parts[1], blend=False)
    if blend:
        most = grid.overlap * max(*parts, grid.overlap)
        launch_rectangles(q, k, v, factor, grid, y, (before, after), most, blend=True)
    return y


def launch_rectangles(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    factor: float,
    grid: TileGrid,
    y: Tensor,
    cut: tuple[int, int],
    most: int,
    *,
    blend: bool,
) -> None:
    """The rectangles that one tile owns, of up to `most` positions, or those that tiles share."""
    heads, head_dim = q.shape[2:]
    device, size = launch.describe(q.device), q.element_size()
    bands, lanes = (2 * n - 1 if blend else n for n in (grid.rows, grid.cols))
    rectangles = y.shape[0] * bands * lanes
    if rectangles == 0 or most == 0:
        return
    shape = tuned.choose(
        f"stitched_tile_attention_kernel{' blend' if blend else ''}",
        blended if blend else flash.block,
        most, rectangles * heads, head_dim, size, device,
    )  # fmt: skip
    blocks = launch.ceil_div(most, shape.rows)
    unit = launch.unit_of(q, k, v)
    strides = [n for t in (q, k, v) for n in launch.strides_of(t, unit)]
    head, tail = flash.split(head_dim, size)
    with launch.on(q):
        queue(
            stitched_tile_attention_kernel, (rectangles * blocks * heads,),
            q, k, v, y, heads, grid.rows, grid.cols, grid.tile, grid.overlap, grid.border,
            *cut, blocks, factor, *strides,
            BLEND=blend, LINEAR=grid.rule == "linear", UNIT=unit, D=head_dim,
            HEAD=head, TAIL=tail, ROWS=shape.rows, KEYS=shape.keys,
            num_warps=shape.warps, num_stages=shape.stages,
        )  # fmt: skip
