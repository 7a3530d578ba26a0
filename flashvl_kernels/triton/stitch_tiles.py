"""Overlapping tiles to one canvas: each program takes a few positions and finds their sources.

The geometry of a `TileGrid` is a handful of integer operations a position, computed here instead of
read from a table, and separable: along each axis a position has one source, or under `mean` and
`linear` a second one in the tile before it (Flash-VL, arXiv 2505.09498; flashvl_kernels/tiles.py).
Sources that do not exist are masked loads: no traffic, and no 0 * Inf. Bound by bytes.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from flashvl_kernels.tiles import TileGrid
from flashvl_kernels.triton import launch
from flashvl_kernels.triton.expect import Expect

EXPECT = {"stitch_tiles_kernel": Expect(wide_access=True)}

BIT_EQUAL = 0.99
"""Least share of a bf16 result that is bit-equal to the reference, which rounds where this does."""


@triton.jit
def source_along(position, tiles, tile, overlap, BLENDS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Of a position on one axis of the full canvas: the last tile that covers it, the place in it,
    and whether its source is the tile before it (or, where the axis BLENDS, that tile as well)."""
    step = tile - overlap
    last = tl.minimum(position // step, tiles - 1)
    local = position - last * step
    # Of an odd overlap the middle goes to the tile before.
    reach = overlap if BLENDS else (overlap + 1) // 2
    return last, local, (last > 0) & (local < reach)


@triton.jit
def share_along(local, before, overlap, LINEAR: tl.constexpr):  # type: ignore[no-untyped-def]
    """The weight of the last tile that covers the position; the tile before has the rest."""
    share = tl.full(local.shape, 0.5, tl.float32)
    if LINEAR:
        # Zero only where nothing overlaps, and then no position asks for it.
        width = tl.maximum(2 * overlap, 1).to(tl.float32)
        share = tl.div_rn((2 * local + 1).to(tl.float32), tl.broadcast_to(width, local.shape))
    return tl.where(before, share, 1.0)


@triton.jit
def stitch_tiles_kernel(
    x, y,
    positions, columns, across,
    canvas_len, canvas_width, grid_rows, grid_columns, tile, overlap, border,
    tile_stride, token_stride, stride,
    BLEND_ROWS: tl.constexpr, BLEND_COLUMNS: tl.constexpr, LINEAR: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # type: ignore[no-untyped-def] # fmt: skip
    """y [positions, columns], the canvases of all images one after the other."""
    program = tl.program_id(0).to(tl.int64)
    row = program // across * ROWS + tl.arange(0, ROWS)[:, None]
    column = program % across * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    inside = (row < positions) & (column < columns)

    place = (row % canvas_len).to(tl.int32)
    first_tile = row // canvas_len * (grid_rows * grid_columns)
    r_tile, r_local, r_before = source_along(
        place // canvas_width + border, grid_rows, tile, overlap, BLEND_ROWS
    )
    c_tile, c_local, c_before = source_along(
        place % canvas_width + border, grid_columns, tile, overlap, BLEND_COLUMNS
    )
    step = tile - overlap

    if BLEND_ROWS or BLEND_COLUMNS:
        r_share = share_along(r_local, r_before, overlap, LINEAR)
        c_share = share_along(c_local, c_before, overlap, LINEAR)
        if not BLEND_ROWS:
            r_share = tl.full(r_local.shape, 1.0, tl.float32)
        if not BLEND_COLUMNS:
            c_share = tl.full(c_local.shape, 1.0, tl.float32)
        total = tl.zeros((ROWS, COLUMNS), tl.float32)
    # Upper before lower, left before right, as the reference adds them.
    for r in tl.static_range(0 if BLEND_ROWS else 1, 2):
        for c in tl.static_range(0 if BLEND_COLUMNS else 1, 2):
            r_shift = r_before if r == 0 or not BLEND_ROWS else r_before & False
            c_shift = c_before if c == 0 or not BLEND_COLUMNS else c_before & False
            exists = (r_shift | (r == 1)) & (c_shift | (c == 1))
            which = (r_tile - r_shift) * grid_columns + c_tile - c_shift
            token = (r_local + r_shift * step) * tile + c_local + c_shift * step
            at = (first_tile + which) * tile_stride + token.to(tl.int64) * token_stride
            part = tl.load(x + at + column * stride, inside & exists, 0.0)
            if BLEND_ROWS or BLEND_COLUMNS:
                r_weight = r_share if r == 1 else 1.0 - r_share
                c_weight = c_share if c == 1 else 1.0 - c_share
                total += part.to(tl.float32) * (r_weight * c_weight)
            else:
                total = part
    tl.store(y + row * columns + column, total.to(y.dtype.element_ty), inside)


def why_not(
    x: Tensor, rows: int, cols: int, tile: int, overlap: int, rule: str, border: int
) -> str | None:
    """Every call is supported."""
    return None


def run(x: Tensor, rows: int, cols: int, tile: int, overlap: int, rule: str, border: int) -> Tensor:
    """The canvas [B, canvas_len, C] of tiles x [B*T, t*t, C]."""
    grid = TileGrid(rows, cols, tile, overlap, rule, border)
    columns = x.shape[2]
    y = x.new_empty(x.shape[0] // grid.tiles, grid.canvas_len, columns)
    if y.numel() == 0:
        return y
    positions = y.shape[0] * grid.canvas_len
    shape = launch.tile(positions, columns, y.element_size(), launch.describe(x.device))
    across = triton.cdiv(columns, shape.columns)
    blends = rule != "crop" and overlap > 0
    with launch.on(x):
        stitch_tiles_kernel[(triton.cdiv(positions, shape.rows) * across,)](
            x, y, positions, columns, across,
            grid.canvas_len, grid.canvas[1], rows, cols, tile, overlap, border, *x.stride(),
            BLEND_ROWS=blends and rows > 1, BLEND_COLUMNS=blends and cols > 1,
            LINEAR=rule == "linear",
            ROWS=shape.rows, COLUMNS=shape.columns, num_warps=shape.warps,
        )  # fmt: skip
    return y
