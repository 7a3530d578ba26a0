"""Matrix product with a norm before and an epilogue after; float, int8 and int4 weights.

One program takes a tile of the result and walks along the columns. Where tiles are fewer than
processors, as at one row, the sum over columns is split between programs, which write fp32 sums for
`finish_kernel` to add in a fixed order: no atomics, so a result is the same every time (stream-K's
fix-up, arXiv 2301.03598, with equal parts). Few rows are bound by the bytes of w, many by 2 FLOPs
for each row, unit and column.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor, float32

from flashvl_kernels.packing import FlatWeight
from flashvl_kernels.triton import launch, product, tuned
from flashvl_kernels.triton.addressing import row_offsets
from flashvl_kernels.triton.dispatch import queue
from flashvl_kernels.triton.expect import Expect
from flashvl_kernels.triton.product import (
    activated,
    add_product,
    input_tile,
    scaled,
    tile_of,
)

EXPECT = {
    "product_kernel": Expect(tensor_cores=True),
    "finish_kernel": Expect(wide_access=True),
}


@triton.jit
def finished(
    sums, y, row, rows, unit, units, bias, bias_stride,
    residual, r_inner, r_outer_stride, r_inner_stride, r_stride,
    BIAS: tl.constexpr, ACTIVATION: tl.constexpr, RESIDUAL: tl.constexpr,
):  # type: ignore[no-untyped-def] # fmt: skip
    """Stores activation(sums + bias) + residual to y, rounded after each as unfused modules do."""
    dtype = y.dtype.element_ty
    inside = (row < rows) & (unit < units)
    if BIAS:
        sums += tl.load(bias + unit * bias_stride, unit < units, 0.0).to(tl.float32)
    result = sums.to(dtype)
    if ACTIVATION != "none":
        result = activated(result.to(tl.float32), ACTIVATION).to(dtype)
    if RESIDUAL:
        r_row = row_offsets(row, r_inner, r_outer_stride, r_inner_stride)
        more = tl.load(residual + r_row + unit * r_stride, inside, 0.0).to(tl.float32)
        result = (result.to(tl.float32) + more).to(dtype)
    tl.store(y + row * units + unit, result, inside)


@triton.jit
def product_kernel(
    x, y, partial, rows, units, columns, part,
    x_inner, x_outer_stride, x_inner_stride, x_stride,
    w, w_row_stride, w_stride, scale, scale_row_stride, scale_stride,
    bias, bias_stride, residual, r_inner, r_outer_stride, r_inner_stride, r_stride,
    FORMAT: tl.constexpr, SPLIT: tl.constexpr,
    BIAS: tl.constexpr, ACTIVATION: tl.constexpr, RESIDUAL: tl.constexpr,
    ROWS: tl.constexpr, UNITS: tl.constexpr, STEP: tl.constexpr,
):  # type: ignore[no-untyped-def] # fmt: skip
    """A tile of y; under SPLIT the sums over `part` columns, to partial [parts, rows, units]."""
    row_tile, unit_tile = tile_of(tl.program_id(0), tl.cdiv(rows, ROWS), tl.cdiv(units, UNITS))
    row = row_tile.to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    unit = unit_tile.to(tl.int64) * UNITS + tl.arange(0, UNITS)[:, None]
    x_rows = x + row_offsets(row, x_inner, x_outer_stride, x_inner_stride)
    w_rows = w + unit * w_row_stride
    scale_rows = scale + unit * scale_row_stride

    start = tl.program_id(1) * part if SPLIT else 0
    sums = tl.zeros((ROWS, UNITS), tl.float32)
    for first in range(start, min(start + part, columns), STEP):
        column = first + tl.arange(0, STEP)[None, :].to(tl.int64)
        tile = input_tile(x_rows, row, rows, column, columns, x_stride)
        sums = add_product(
            sums, tile, w_rows, unit < units, first, columns, w_stride, scale_rows, scale_stride,
            FORMAT, STEP,
        )  # fmt: skip
    sums = scaled(sums, scale_rows, unit < units, FORMAT)

    along = unit_tile.to(tl.int64) * UNITS + tl.arange(0, UNITS)[None, :]
    if SPLIT:
        here = (tl.program_id(1).to(tl.int64) * rows + row) * units + along
        tl.store(partial + here, sums, (row < rows) & (along < units))
    else:
        finished(
            sums, y, row, rows, along, units, bias, bias_stride,
            residual, r_inner, r_outer_stride, r_inner_stride, r_stride,
            BIAS, ACTIVATION, RESIDUAL,
        )  # fmt: skip


@triton.jit
def finish_kernel(
    partial, y, rows, units, splits, across, bias, bias_stride,
    residual, r_inner, r_outer_stride, r_inner_stride, r_stride,
    BIAS: tl.constexpr, ACTIVATION: tl.constexpr, RESIDUAL: tl.constexpr,
    ROWS: tl.constexpr, UNITS: tl.constexpr,
):  # type: ignore[no-untyped-def] # fmt: skip
    """y from the sums of every part, added from the first to the last."""
    program = tl.program_id(0).to(tl.int64)
    row = program // across * ROWS + tl.arange(0, ROWS)[:, None]
    unit = program % across * UNITS + tl.arange(0, UNITS)[None, :]
    inside = (row < rows) & (unit < units)
    part = partial + row * units + unit
    size = tl.cast(rows, tl.int64) * units
    sums = tl.zeros((ROWS, UNITS), tl.float32)
    for split in tl.range(splits):
        sums += tl.load(part + split * size, inside, 0.0)
    finished(
        sums, y, row, rows, unit, units, bias, bias_stride,
        residual, r_inner, r_outer_stride, r_inner_stride, r_stride,
        BIAS, ACTIVATION, RESIDUAL,
    )  # fmt: skip


def project(
    x: Tensor,
    w: FlatWeight,
    bias: Tensor | None = None,
    activation: str | None = None,
    residual: Tensor | None = None,
    norm: tuple[Tensor | None, Tensor | None, float] = (None, None, 0.0),
) -> Tensor:
    """activation(norm(x) @ w.T + bias) + residual: [..., K] to [..., N]."""
    units, columns = w[0].shape[0], w[3]
    y = x.new_empty((*x.shape[:-1], units))
    if y.numel() == 0:
        return y
    xs = launch.rows_of(product.normalised(x, *norm), y.numel() // units)
    rs = xs if residual is None else launch.rows_of(residual)
    shift = y if bias is None else bias
    device = launch.describe(x.device)
    shape = tuned.choose(
        f"product_kernel {w[2]}", product.blocks, xs.count, units, columns, x.element_size(), device
    )
    partial = y
    if shape.splits > 1:
        partial = x.new_empty((shape.splits, xs.count, units), dtype=float32)
    epilogue = {"BIAS": bias is not None, "ACTIVATION": activation or "none"}
    epilogue |= {"RESIDUAL": residual is not None}
    after = (shift, shift.stride(0), rs.tensor, *rs.strides)
    tiles = launch.ceil_div(xs.count, shape.rows) * launch.ceil_div(units, shape.units)
    with launch.on(x):
        queue(
            product_kernel, (tiles, shape.splits),
            xs.tensor, y, partial, xs.count, units, columns, shape.part, *xs.strides,
            *product.weight_arguments(w), *after,
            FORMAT=w[2], SPLIT=shape.splits > 1, **epilogue,
            ROWS=shape.rows, UNITS=shape.units, STEP=shape.step,
            num_warps=shape.warps, num_stages=shape.stages,
        )  # fmt: skip
        if shape.splits > 1:
            _finish(partial, y, xs.count, units, shape.splits, after, epilogue, device)
    return y


def _finish(
    partial: Tensor,
    y: Tensor,
    rows: int,
    units: int,
    splits: int,
    after: tuple[object, ...],
    epilogue: dict[str, object],
    device: launch.Device,
) -> None:
    tile = tuned.choose("finish_kernel", launch.tile, rows, units, 4, device, widest=512)
    across = launch.ceil_div(units, tile.columns)
    queue(
        finish_kernel, (launch.ceil_div(rows, tile.rows) * across,),
        partial, y, rows, units, splits, across, *after, **epilogue,
        ROWS=tile.rows, UNITS=tile.columns, num_warps=tile.warps,
    )  # fmt: skip


def why_not(
    x: Tensor,
    w_data: Tensor,
    w_scale: Tensor | None,
    w_format: str,
    w_columns: int,
    bias: Tensor | None,
    activation: str | None,
    residual: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    norm_eps: float,
) -> str | None:
    """The weight lies in rows; a norm's row fits into registers."""
    w = (w_data, w_scale, w_format, w_columns)
    return product.why_not_operand("w", w) or product.why_not_norm(x, norm_weight)


def run(
    x: Tensor,
    w_data: Tensor,
    w_scale: Tensor | None,
    w_format: str,
    w_columns: int,
    bias: Tensor | None,
    activation: str | None,
    residual: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    norm_eps: float,
) -> Tensor:
    """activation(norm(x) @ w.T + bias) + residual."""
    w = (w_data, w_scale, w_format, w_columns)
    return project(x, w, bias, activation, residual, (norm_weight, norm_bias, norm_eps))
