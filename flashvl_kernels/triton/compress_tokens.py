"""Vision tokens compressed, from tiles or a stitched canvas, with their norm, in one pass.

shuffle: a program gathers the factor^2 tokens of one output as the rows of a tile, so that each is
read as it lies, and norms the tile as one row, or each row before (pixel shuffle: Shi et al., arXiv
1609.05158, backwards; "none" is the shuffle with factor 1). pool: a program adds up the tokens that
one output is the mean or the interpolation of. Under a grid, both read straight from the tiles
(canvas.py): the canvas never exists in memory. Bound by bytes: at most 10 FLOPs an element. Pooling
and blending are summed in fp32 and rounded once, before the norm.
"""

from __future__ import annotations

import math
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from flashvl_kernels.compression import Compression
from flashvl_kernels.tiles import TileGrid
from flashvl_kernels.triton import canvas, launch, tuned
from flashvl_kernels.triton.canvas import canvas_row
from flashvl_kernels.triton.dispatch import queue
from flashvl_kernels.triton.expect import Expect
from flashvl_kernels.triton.norm_rows import LAYER, NONE, normalised

WIDEST = 32768
"""Elements of an output whose fp32 tile still fits into the registers of 1024 threads, 32 each."""

EXPECT = {
    "shuffle_kernel": Expect(wide_access=True),
    "pool_kernel": Expect(wide_access=True),
}
BIT_EQUAL = 0.98
"""Least share of a bf16 result that is bit-equal to the reference, which rounds where this does."""

AVERAGE, ADAPTIVE, BILINEAR = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
POOLS = ("average", "adaptive", "bilinear")


@triton.jit
def output_place(program, out_rows, out_cols, TRANSPOSE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Image, row and column of the output token that is number `program` in memory."""
    image, token = program // (out_rows * out_cols), program % (out_rows * out_cols)
    if TRANSPOSE:
        row, col = token % out_rows, token // out_rows
    else:
        row, col = token // out_cols, token % out_cols
    return image, row, col


@triton.jit
def shuffle_kernel(
    x, weight, bias, y,
    out_rows, out_cols, height, width, columns, eps, weight_stride, bias_stride,
    rows, cols, tile, overlap, border, tile_stride, token_stride, stride,
    RULE: tl.constexpr, ROW_WAYS: tl.constexpr, COL_WAYS: tl.constexpr,
    NORM: tl.constexpr, NORM_FIRST: tl.constexpr, UNFOLD: tl.constexpr, TRANSPOSE: tl.constexpr,
    FACTOR: tl.constexpr, PARTS: tl.constexpr, COLUMNS: tl.constexpr,
):  # type: ignore[no-untyped-def] # fmt: skip
    """One output token y [factor^2 * columns], its channels part by part, or under UNFOLD with the
    part innermost; parts past the canvas are zero."""
    program = tl.program_id(0).to(tl.int64)
    image, row, col = output_place(program, out_rows, out_cols, TRANSPOSE)
    part = tl.arange(0, PARTS)[:, None]
    column = tl.arange(0, COLUMNS)[None, :].to(tl.int64)
    parts: tl.constexpr = FACTOR * FACTOR
    made = (part < parts) & (column < columns)
    y_at, x_at = row * FACTOR + part // FACTOR, col * FACTOR + part % FACTOR
    inside = made & (y_at < height) & (x_at < width)
    tokens = canvas_row(
        x, image, y_at, x_at, column, inside,
        rows, cols, tile, overlap, border, tile_stride, token_stride, stride,
        RULE, ROW_WAYS, COL_WAYS,
    )  # fmt: skip
    tokens = tokens.to(y.dtype.element_ty).to(tl.float32)

    channel = part * columns + column
    if UNFOLD:
        channel = column * parts + part
    if NORM != NONE:
        mapped = column if NORM_FIRST else channel
        scale = tl.load(weight + mapped * weight_stride, made, 0.0).to(tl.float32)
        shift = scale
        if NORM == LAYER:
            shift = tl.load(bias + mapped * bias_stride, made, 0.0).to(tl.float32)
        if NORM_FIRST:
            normal = normalised(
                tokens, scale, shift, inside, columns, eps, y.dtype.element_ty, NORM, False
            )
            tokens = tl.where(inside, normal, 0.0)  # padding comes after the norm
        else:
            tokens = normalised(
                tokens, scale, shift, made, parts * columns, eps, y.dtype.element_ty, NORM, True
            )
    rounded = tokens.to(y.dtype.element_ty)
    start = y + program * parts * columns
    if UNFOLD and parts == PARTS:
        # Turned in shared memory, the output is one run: stores of 16 bytes, not of 2.
        flat = tl.arange(0, PARTS * COLUMNS)
        run = tl.reshape(tl.trans(rounded), (PARTS * COLUMNS,))
        tl.store(start + flat, run, flat < parts * columns)
    else:
        tl.store(start + channel, rounded, made)


@triton.jit
def span(at, size, out, FACTOR: tl.constexpr, POOL: tl.constexpr):  # type: ignore[no-untyped-def]
    """Along one axis: the first token that output `at` of `out` sees, how many, and the weight of
    the second (bilinear) or of each."""
    if POOL == AVERAGE:
        first, count, share = at * FACTOR, at * 0 + FACTOR, 1.0 / FACTOR
    elif POOL == ADAPTIVE:
        first = at * size // out
        count = ((at + 1) * size + out - 1) // out - first
        share = tl.div_rn(tl.full(count.shape, 1.0, tl.float32), count.to(tl.float32))
    else:
        # Rounded as the reference rounds it: two units of it are many of a weight far along.
        whole = tl.full(at.shape, 0.0, tl.float32)
        scale = tl.div_rn(whole + size.to(tl.float32), whole + out.to(tl.float32))
        centre = (at.to(tl.float32) + 0.5) * scale - 0.5
        centre = tl.maximum(centre, 0.0)
        first = tl.minimum(centre.to(tl.int64), size - 1)
        count = at * 0 + 2
        share = centre - first.to(tl.float32)
    return first, count, share


@triton.jit
def pool_kernel(
    x, weight, bias, y,
    out_rows, out_cols, height, width, columns, eps, weight_stride, bias_stride,
    rows, cols, tile, overlap, border, tile_stride, token_stride, stride,
    RULE: tl.constexpr, ROW_WAYS: tl.constexpr, COL_WAYS: tl.constexpr,
    NORM: tl.constexpr, NORM_FIRST: tl.constexpr, TRANSPOSE: tl.constexpr, POOL: tl.constexpr,
    FACTOR: tl.constexpr, COLUMNS: tl.constexpr,
):  # type: ignore[no-untyped-def] # fmt: skip
    """One output token y [columns] from the tokens of its block, bin or four neighbours."""
    program = tl.program_id(0).to(tl.int64)
    image, row, col = output_place(program, out_rows, out_cols, TRANSPOSE)
    column = tl.arange(0, COLUMNS)[None, :].to(tl.int64)
    inside = column < columns
    dtype = y.dtype.element_ty
    scale = tl.zeros((1, COLUMNS), tl.float32)
    shift = scale
    if NORM != NONE:
        scale = tl.load(weight + column * weight_stride, inside, 0.0).to(tl.float32)
    if NORM == LAYER:
        shift = tl.load(bias + column * bias_stride, inside, 0.0).to(tl.float32)

    first_y, count_y, share_y = span(row, height, out_rows, FACTOR, POOL)
    first_x, count_x, share_x = span(col, width, out_cols, FACTOR, POOL)
    pooled = tl.zeros((1, COLUMNS), tl.float32)
    at = tl.zeros((1, 1), tl.int64)  # a block: the interpreter spreads a scalar mask as a float
    for i in range(0, count_y * count_x):
        down, right = i // count_x, i % count_x
        token = canvas_row(
            x, image, tl.minimum(first_y + down, height - 1) + at,
            tl.minimum(first_x + right, width - 1) + at, column, inside,
            rows, cols, tile, overlap, border, tile_stride, token_stride, stride,
            RULE, ROW_WAYS, COL_WAYS,
        )  # fmt: skip
        if NORM_FIRST:
            token = token.to(dtype).to(tl.float32)
            token = normalised(token, scale, shift, inside, columns, eps, dtype, NORM, False)
            token = token.to(dtype).to(tl.float32)
        if POOL == BILINEAR:
            share = tl.where(down == 0, 1.0 - share_y, share_y)
            token *= share * tl.where(right == 0, 1.0 - share_x, share_x)
        pooled += token
    if POOL != BILINEAR:
        pooled *= share_y * share_x
    if NORM != NONE and not NORM_FIRST:
        pooled = pooled.to(dtype).to(tl.float32)
        pooled = normalised(pooled, scale, shift, inside, columns, eps, dtype, NORM, False)
    tl.store(y + program * columns + column, pooled.to(dtype), inside)


def _layout(x: Tensor, fields: tuple[Any, ...]) -> tuple[Compression, TileGrid | None, int, int]:
    """How, the grid or None, and height and width of the tokens; from the schema arguments."""
    how, (height, width, rows) = Compression.from_flat(fields[:8]), fields[8:11]
    if rows != 0:
        grid = TileGrid.from_flat(fields[10:])
        return how, grid, *grid.canvas
    if height == -1:
        height = width = math.isqrt(x.shape[1])
    return how, None, height, width


def _parts(how: Compression) -> int:
    """Tokens that lie beside each other in an output."""
    return how.factor * how.factor if how.kind == "shuffle" else 1


def why_not(
    x: Tensor, norm_weight: Tensor | None, norm_bias: Tensor | None, norm_eps: float, *fields: Any
) -> str | None:
    """The kernels keep an output in registers."""
    how = Compression.from_flat(fields[:8])
    parts, columns = (launch.power_of_two(n) for n in (_parts(how), x.shape[2]))
    if parts * columns > WIDEST:
        return (
            f"{_parts(how)} x {x.shape[2]} channels an output, padded to {parts} x {columns}; "
            f"the triton kernel takes up to {WIDEST}"
        )
    return None


def run(
    x: Tensor, norm_weight: Tensor | None, norm_bias: Tensor | None, norm_eps: float, *fields: Any
) -> Tensor:
    """Compressed tokens [B, tokens, channels]; `fields` as in the schema of ops/compress_tokens."""
    how, grid, height, width = _layout(x, fields)
    images = x.shape[0] if grid is None else x.shape[0] // grid.tiles
    out_rows, out_cols = how.grid(height, width)
    y = x.new_empty(images, out_rows * out_cols, how.channels(x.shape[2]))
    if y.numel() == 0:
        return y
    source = canvas.whole(x, width) if grid is None else canvas.of(x, grid)
    parts, columns = (launch.power_of_two(n) for n in (_parts(how), x.shape[2]))
    device = launch.describe(x.device)
    warps = tuned.choose(
        "shuffle_kernel" if how.kind not in POOLS else "pool_kernel", launch.tile,
        1, parts * columns, x.element_size(), device, widest=WIDEST,
    ).warps  # fmt: skip
    arguments = (
        x, x if norm_weight is None else norm_weight, x if norm_bias is None else norm_bias, y,
        out_rows, out_cols, height, width, x.shape[2], norm_eps,
        0 if norm_weight is None else norm_weight.stride(0),
        0 if norm_bias is None else norm_bias.stride(0), *source.grid, *source.strides,
    )  # fmt: skip
    constants = dict(
        source.constants,
        NORM=0 if norm_weight is None else 1 if norm_bias is None else 2,
        NORM_FIRST=how.norm_first and norm_weight is not None,
        TRANSPOSE=how.transpose, FACTOR=1 if how.kind == "none" else how.factor,
        COLUMNS=columns, num_warps=warps,
    )  # fmt: skip
    programs = (images * out_rows * out_cols,)
    with launch.on(x):
        if how.kind in POOLS:
            queue(pool_kernel, programs, *arguments, **constants, POOL=POOLS.index(how.kind))
        else:
            unfold = how.order == "channel_row_col"
            queue(shuffle_kernel, programs, *arguments, **constants, UNFOLD=unfold, PARTS=parts)
    return y
