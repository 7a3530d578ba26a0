"""The decoder's MLP: RMSNorm, gate and up product with SwiGLU, down product with the residual.

A program of the first kernel takes the gates of some units and the ups of the same ones, so that
the 2F wide product is never written: silu(gate) * up leaves its registers (Shazeer, arXiv
2002.05202). The down product is the kernel of `linear`. One row is bound by reading the three
weight matrices, many by 6 C F FLOPs a row.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from flashvl_kernels.packing import FlatWeight
from flashvl_kernels.triton import launch, linear, product, tuned
from flashvl_kernels.triton.addressing import row_offsets
from flashvl_kernels.triton.dispatch import queue
from flashvl_kernels.triton.expect import Expect
from flashvl_kernels.triton.product import activated, add_product, input_tile, scaled, tile_of

EXPECT = {
    "rms_norm_kernel": Expect(wide_access=True),
    "gated_kernel": Expect(tensor_cores=True),
    "product_kernel": Expect(tensor_cores=True),
    "finish_kernel": Expect(wide_access=True),
}


@triton.jit
def gated_kernel(
    x, y, rows, units, columns,
    x_inner, x_outer_stride, x_inner_stride, x_stride,
    w, w_row_stride, w_stride, scale, scale_row_stride, scale_stride,
    FORMAT: tl.constexpr,
    ROWS: tl.constexpr, UNITS: tl.constexpr, STEP: tl.constexpr,
):  # type: ignore[no-untyped-def] # fmt: skip
    """A tile of y [rows, units]: unit u has its gate in row u of w and its up in row units + u."""
    row_tile, unit_tile = tile_of(tl.program_id(0), tl.cdiv(rows, ROWS), tl.cdiv(units, UNITS))
    row = row_tile.to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    unit = unit_tile.to(tl.int64) * UNITS + tl.arange(0, UNITS)[:, None]
    x_rows = x + row_offsets(row, x_inner, x_outer_stride, x_inner_stride)
    gate_rows, up_rows = w + unit * w_row_stride, w + (units + unit) * w_row_stride
    gate_scales = scale + unit * scale_row_stride
    up_scales = scale + (units + unit) * scale_row_stride

    gate = tl.zeros((ROWS, UNITS), tl.float32)
    up = tl.zeros((ROWS, UNITS), tl.float32)
    for first in range(0, columns, STEP):
        column = first + tl.arange(0, STEP)[None, :].to(tl.int64)
        tile = input_tile(x_rows, row, rows, column, columns, x_stride)
        gate = add_product(
            gate, tile, gate_rows, unit < units, first, columns, w_stride,
            gate_scales, scale_stride, FORMAT, STEP,
        )  # fmt: skip
        up = add_product(
            up, tile, up_rows, unit < units, first, columns, w_stride,
            up_scales, scale_stride, FORMAT, STEP,
        )  # fmt: skip

    dtype = y.dtype.element_ty
    gate = scaled(gate, gate_scales, unit < units, FORMAT).to(dtype).to(tl.float32)
    up = scaled(up, up_scales, unit < units, FORMAT).to(dtype).to(tl.float32)
    silu = activated(gate, "silu").to(dtype).to(tl.float32)
    along = unit_tile.to(tl.int64) * UNITS + tl.arange(0, UNITS)[None, :]
    tl.store(y + row * units + along, (silu * up).to(dtype), (row < rows) & (along < units))


def gated(x: Tensor, w: FlatWeight, norm_weight: Tensor, eps: float) -> Tensor:
    """silu(gate) * up of norm(x): [..., C] to [..., F], contiguous."""
    units, columns = w[0].shape[0] // 2, w[3]
    y = x.new_empty((*x.shape[:-1], units))
    if y.numel() == 0:
        return y
    xs = launch.rows_of(product.normalised(x, norm_weight, None, eps), y.numel() // units)
    device = launch.describe(x.device)
    shape = tuned.choose(
        f"gated_kernel {w[2]}", product.blocks,
        xs.count, units, columns, x.element_size(), device, gated=True,
    )  # fmt: skip
    tiles = launch.ceil_div(xs.count, shape.rows) * launch.ceil_div(units, shape.units)
    with launch.on(x):
        queue(
            gated_kernel, (tiles,),
            xs.tensor, y, xs.count, units, columns, *xs.strides,
            *product.weight_arguments(w),
            FORMAT=w[2], ROWS=shape.rows, UNITS=shape.units, STEP=shape.step,
            num_warps=shape.warps, num_stages=shape.stages,
        )  # fmt: skip
    return y


def why_not(
    x: Tensor,
    norm_weight: Tensor,
    norm_eps: float,
    gate_up_data: Tensor,
    gate_up_scale: Tensor | None,
    gate_up_format: str,
    gate_up_columns: int,
    down_data: Tensor,
    down_scale: Tensor | None,
    down_format: str,
    down_columns: int,
) -> str | None:
    """The weights lie in rows; the norm's row fits into registers."""
    gate_up = (gate_up_data, gate_up_scale, gate_up_format, gate_up_columns)
    return (
        product.why_not_operand("w_gate_up", gate_up)
        or product.why_not_operand("w_down", (down_data, down_scale, down_format, down_columns))
        or product.why_not_norm(x, norm_weight)
    )


def run(
    x: Tensor,
    norm_weight: Tensor,
    norm_eps: float,
    gate_up_data: Tensor,
    gate_up_scale: Tensor | None,
    gate_up_format: str,
    gate_up_columns: int,
    down_data: Tensor,
    down_scale: Tensor | None,
    down_format: str,
    down_columns: int,
) -> Tensor:
    """x + w_down · (silu(gate) * up), gate and up the halves of w_gate_up · RMSNorm(x)."""
    gate_up = (gate_up_data, gate_up_scale, gate_up_format, gate_up_columns)
    wide = gated(x, gate_up, norm_weight, norm_eps)
    return linear.project(wide, (down_data, down_scale, down_format, down_columns), residual=x)
