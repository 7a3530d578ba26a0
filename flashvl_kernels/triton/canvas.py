"""The canvas of a `TileGrid` inside a kernel: which patches of which tiles make up a position.

The same geometry as `tiles._axis`, computed where it is used: a few integer operations a position
cost less than a table to read. The two axes are alike; their weights multiply.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from flashvl_kernels.tiles import RULES, TileGrid

CROP, MEAN, LINEAR = (tl.constexpr(RULES.index(rule)) for rule in ("crop", "mean", "linear"))


@triton.jit
def axis_source(position, tiles, tile, overlap, border, RULE: tl.constexpr, WAY: tl.constexpr):  # type: ignore[no-untyped-def]
    """Source number WAY of a canvas position along one axis: its tile, its place in that, weight.

    Way 0 is the tile that alone covers the position, or the upper (left) one of two; way 1 is the
    lower one. A weight of 0 stands for no source: it must be masked, not multiplied.
    """
    step = tile - overlap
    full = position + border
    last = tl.minimum(full // step, tiles - 1)  # the last tile that covers this position
    local = full - last * step
    shared = (last > 0) & (local < overlap)
    before = shared & (WAY == 0)
    if RULE == CROP:
        before = shared & (local < (overlap + 1) // 2)
        weight = tl.where(local >= 0, 1.0, 0.0)
    else:
        if RULE == MEAN:
            share = tl.where(shared, 0.5, 1.0)
        else:
            # Distances of the patch's centre in half patches: whole numbers, one rounding.
            distance = tl.where(before, 2 * (overlap - local) - 1, 2 * local + 1).to(tl.float32)
            wide = tl.full(distance.shape, 1, tl.int64) * tl.maximum(2 * overlap, 1)
            share = tl.where(shared, tl.div_rn(distance, wide.to(tl.float32)), 1.0)
        weight = tl.where(shared | (WAY == 0), share, 0.0)
    return last - before.to(last.dtype), local + tl.where(before, step, 0), weight


@triton.jit
def canvas_row(
    x, image, y, x_at, column, inside,
    rows, cols, tile, overlap, border, tile_stride, token_stride, stride,
    RULE: tl.constexpr, ROW_WAYS: tl.constexpr, COL_WAYS: tl.constexpr,
):  # type: ignore[no-untyped-def] # fmt: skip
    """fp32 features at position (y, x_at) of `image`'s canvas, shapes that broadcast, int64.

    Not rounded: the sources are added up from the upper left, 0 outside `inside`.
    """
    for i in tl.static_range(ROW_WAYS):
        tile_y, in_y, weight_y = axis_source(y, rows, tile, overlap, border, RULE, i)
        for j in tl.static_range(COL_WAYS):
            tile_x, in_x, weight_x = axis_source(x_at, cols, tile, overlap, border, RULE, j)
            share = weight_y * weight_x
            start = ((image * rows + tile_y) * cols + tile_x) * tile_stride
            token = x + start + (in_y * tile + in_x) * token_stride
            part = tl.load(token + column * stride, inside & (share > 0), 0.0).to(tl.float32)
            if ROW_WAYS * COL_WAYS > 1:
                part *= share
            if i + j == 0:
                total = part
            else:
                total += part
    return total


@dataclass(frozen=True)
class Canvas:
    """x [B*T, t*t, C] as `canvas_row` takes it: what it reads, and how it is compiled."""

    grid: tuple[int, int, int, int, int]
    strides: tuple[int, int, int]
    rule: int
    row_ways: int
    col_ways: int

    @property
    def constants(self) -> dict[str, int]:
        """The compile-time arguments, by name."""
        return {"RULE": self.rule, "ROW_WAYS": self.row_ways, "COL_WAYS": self.col_ways}


def of(x: Tensor, grid: TileGrid) -> Canvas:
    """The canvas of `grid` over the tiles in x: two sources along an axis that is blended."""
    blended = grid.rule != "crop" and grid.overlap > 0
    strides = x.stride(0), x.stride(1), x.stride(2)
    return Canvas(
        (grid.rows, grid.cols, grid.tile, grid.overlap, grid.border),
        strides,
        RULES.index(grid.rule),
        2 if blended and grid.rows > 1 else 1,
        2 if blended and grid.cols > 1 else 1,
    )


def whole(x: Tensor, width: int) -> Canvas:
    """Tokens [B, height * width, C] of images that were never cut: a tile each, rows of `width`.

    Nothing asks a crop of a single tile without an overlap for more than the length of a row.
    """
    return Canvas((1, 1, width, 0, 0), (x.stride(0), x.stride(1), x.stride(2)), 0, 1, 1)
