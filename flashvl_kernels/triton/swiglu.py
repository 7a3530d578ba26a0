"""SwiGLU over a packed last axis: both halves read once, one value written.

One program takes a tile of the output (Shazeer, arXiv 2002.05202). Bound by bytes: 5 FLOPs for
three elements moved. Rounds as Hugging Face's Qwen2: silu to the dtype before it multiplies.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from flashvl_kernels.triton import launch, tuned
from flashvl_kernels.triton.addressing import row_offsets
from flashvl_kernels.triton.dispatch import queue
from flashvl_kernels.triton.expect import Expect

EXPECT = {"swiglu_kernel": Expect(wide_access=True)}
BIT_EQUAL = 0.99
"""Least share of a bf16 result that is bit-equal to the reference, which rounds where this does."""


@triton.jit
def swiglu_kernel(
    gate_up, y,
    rows, columns, across,
    inner, outer_stride, inner_stride, stride,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # type: ignore[no-untyped-def] # fmt: skip
    """y [rows, columns] from rows of 2 * columns; `across` tiles lie beside each other."""
    program = tl.program_id(0).to(tl.int64)
    row = program // across * ROWS + tl.arange(0, ROWS)[:, None]
    column = program % across * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    inside = (row < rows) & (column < columns)

    gates = gate_up + row_offsets(row, inner, outer_stride, inner_stride)
    gate = tl.load(gates + column * stride, inside, 0.0).to(tl.float32)
    up = tl.load(gates + (column + columns) * stride, inside, 0.0).to(tl.float32)
    silu = (gate / (1.0 + tl.exp(-gate))).to(y.dtype.element_ty)
    gated = silu.to(tl.float32) * up
    tl.store(y + row * columns + column, gated.to(y.dtype.element_ty), inside)


def why_not(gate_up: Tensor) -> str | None:
    """Every call is supported."""
    return None


def run(gate_up: Tensor) -> Tensor:
    """silu(gate) * up, [..., F] from [..., 2F]."""
    columns = gate_up.shape[-1] // 2
    y = gate_up.new_empty((*gate_up.shape[:-1], columns))
    if y.numel() == 0:
        return y
    rows = launch.rows_of(gate_up)
    device = launch.describe(gate_up.device)
    shape = tuned.choose(
        "swiglu_kernel", launch.tile, rows.count, columns, y.element_size(), device
    )
    across = launch.ceil_div(columns, shape.columns)
    with launch.on(gate_up):
        queue(
            swiglu_kernel, (launch.ceil_div(rows.count, shape.rows) * across,),
            rows.tensor, y, rows.count, columns, across, *rows.strides,
            ROWS=shape.rows, COLUMNS=shape.columns, num_warps=shape.warps,
        )  # fmt: skip
    return y
