"""Features of overlapping tiles put together to one canvas, one program for a few positions.

Each position finds its up to four patches by itself (Flash-VL's implicit semantic stitching, arXiv
2505.09498). Bound by bytes: at 12.5 % overlap one value in four is blended, 2 FLOPs each. Under
crop it is a copy, and patches that a neighbour owns are not read. Sums in fp32, rounded once.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from flashvl_kernels.tiles import TileGrid
from flashvl_kernels.triton import canvas, launch, tuned
from flashvl_kernels.triton.canvas import canvas_row
from flashvl_kernels.triton.dispatch import queue
from flashvl_kernels.triton.expect import Expect

EXPECT = {"stitch_tiles_kernel": Expect(wide_access=True)}
BIT_EQUAL = 0.99
"""Least share of a bf16 result that is bit-equal to the reference, which rounds where this does."""


@triton.jit
def stitch_tiles_kernel(
    x, stitched,
    positions, columns, across, height, width,
    rows, cols, tile, overlap, border, tile_stride, token_stride, stride,
    RULE: tl.constexpr, ROW_WAYS: tl.constexpr, COL_WAYS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # type: ignore[no-untyped-def] # fmt: skip
    """stitched [positions, columns], those of all images; `across` tiles lie beside each other."""
    program = tl.program_id(0).to(tl.int64)
    position = program // across * ROWS + tl.arange(0, ROWS)[:, None]
    column = program % across * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    inside = (position < positions) & (column < columns)
    image = position // width // height
    total = canvas_row(
        x, image, position // width % height, position % width, column, inside,
        rows, cols, tile, overlap, border, tile_stride, token_stride, stride,
        RULE, ROW_WAYS, COL_WAYS,
    )  # fmt: skip
    tl.store(stitched + position * columns + column, total.to(stitched.dtype.element_ty), inside)


def why_not(
    x: Tensor, rows: int, cols: int, tile: int, overlap: int, rule: str, border: int
) -> str | None:
    """Every call is supported."""
    return None


def run(x: Tensor, rows: int, cols: int, tile: int, overlap: int, rule: str, border: int) -> Tensor:
    """The canvas [B, canvas_len, C] of tiles x [B*T, t*t, C]."""
    grid = TileGrid(rows, cols, tile, overlap, rule, border)
    columns = x.shape[2]
    stitched = x.new_empty(x.shape[0] // grid.tiles, grid.canvas_len, columns)
    if stitched.numel() == 0:
        return stitched
    positions, source = stitched.shape[0] * grid.canvas_len, canvas.of(x, grid)
    shape = tuned.choose(
        "stitch_tiles_kernel", launch.tile,
        positions, columns, x.element_size(), launch.describe(x.device),
    )  # fmt: skip
    across = launch.ceil_div(columns, shape.columns)
    with launch.on(x):
        queue(
            stitch_tiles_kernel, (launch.ceil_div(positions, shape.rows) * across,),
            x, stitched, positions, columns, across, *grid.canvas, *source.grid, *source.strides,
            **source.constants, ROWS=shape.rows, COLUMNS=shape.columns, num_warps=shape.warps,
        )  # fmt: skip
    return stitched
