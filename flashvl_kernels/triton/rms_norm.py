"""RMSNorm with an optional residual add, one program for a few rows, each row read once.

The row stays in registers between the sum of squares and the scaling, so that memory is touched
once each way (Zhang and Sennrich, arXiv 1910.07467; the fused add is FlashInfer's). Bound by bytes:
4 FLOPs an element. Rounds as Hugging Face's Qwen2: the sum to the dtype, then the normalised row
to the dtype before the weight multiplies it.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from flashvl_kernels.triton import launch, tuned
from flashvl_kernels.triton.addressing import row_offsets
from flashvl_kernels.triton.dispatch import queue
from flashvl_kernels.triton.expect import Expect
from flashvl_kernels.triton.norm_rows import inverse_root

WIDEST = 32768
"""Columns whose fp32 row still fits into the registers of 1024 threads, 32 each."""

EXPECT = {"rms_norm_kernel": Expect(wide_access=True)}
BIT_EQUAL = 0.99
"""Least share of a bf16 result that is bit-equal to the reference, which rounds where this does."""


@triton.jit
def rms_norm_kernel(
    x, weight, residual, y, total,
    rows, columns, eps,
    x_inner, x_outer_stride, x_inner_stride, x_stride,
    r_inner, r_outer_stride, r_inner_stride, r_stride,
    weight_stride,
    ADD: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # type: ignore[no-untyped-def] # fmt: skip
    """y, total [rows, columns]: total = x + residual under ADD; y from total, else from x."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, COLUMNS)[None, :].to(tl.int64)
    inside = (row < rows) & (column < columns)
    here = row * columns + column

    x_row = row_offsets(row, x_inner, x_outer_stride, x_inner_stride)
    wide = tl.load(x + x_row + column * x_stride, inside, 0.0).to(tl.float32)
    if ADD:
        r_row = row_offsets(row, r_inner, r_outer_stride, r_inner_stride)
        wide += tl.load(residual + r_row + column * r_stride, inside, 0.0).to(tl.float32)
        summed = wide.to(total.dtype.element_ty)
        tl.store(total + here, summed, inside)
        wide = summed.to(tl.float32)

    rstd = inverse_root(tl.sum(wide * wide, 1), columns, eps)
    normal = (wide * rstd[:, None]).to(y.dtype.element_ty)
    scale = tl.load(weight + column * weight_stride, column < columns, 0.0)
    scaled = scale.to(tl.float32) * normal.to(tl.float32)
    tl.store(y + here, scaled.to(y.dtype.element_ty), inside)


def why_not(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None) -> str | None:
    """The kernel keeps a row in registers."""
    if x.shape[-1] > WIDEST:
        return f"rows have {x.shape[-1]} channels; the triton kernel takes up to {WIDEST}"
    return None


def run(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None) -> tuple[Tensor, Tensor]:
    """y and x + residual, or y and an empty tensor without a residual."""
    y = x.new_empty(x.shape)
    total = x.new_empty(0 if residual is None else x.shape)
    if x.numel() == 0:
        return y, total
    xs = launch.rows_of(x)
    rs = xs if residual is None else launch.rows_of(residual)
    shape = tuned.choose(
        "rms_norm_kernel", launch.tile,
        xs.count, xs.columns, x.element_size(), launch.describe(x.device), widest=WIDEST,
    )  # fmt: skip
    with launch.on(x):
        queue(
            rms_norm_kernel, (launch.ceil_div(xs.count, shape.rows),),
            xs.tensor, weight, rs.tensor, y, total,
            xs.count, xs.columns, eps, *xs.strides, *rs.strides, weight.stride(0),
            ADD=residual is not None, ROWS=shape.rows, COLUMNS=shape.columns,
            num_warps=shape.warps,
        )  # fmt: skip
    return y, total
