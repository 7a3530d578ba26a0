"""Launch plan of linear (csrc/cuda/linear.cuh): one product, after its norm where rows are many."""

from __future__ import annotations

from typing import Any

from flashvl_kernels.cuda import product_plan
from flashvl_kernels.cuda.device import Device
from flashvl_kernels.cuda.launch import Instance, Prepared


def instances() -> list[Instance]:
    """The kernels to build."""
    return product_plan.instances()


def why_not(*flat: Any) -> str | None:
    """Why a call on schema arguments cannot run, or None."""
    return product_plan.why_not_weight("w", flat[3]) if flat else None


def prepare(flat: tuple[Any, ...], device: Device) -> Prepared:
    """A call on schema arguments."""
    x, w_data, w_scale, w_format, w_columns, bias, activation, residual, *norm = flat
    y = x.new_empty((*x.shape[:-1], w_data.shape[0]))
    work = product_plan.Products(device)
    if y.numel():
        product_plan.product(
            work,
            x,
            (w_data, w_scale, w_format, w_columns),
            y,
            names=("x", "w", "y"),
            bias=bias,
            activation=activation,
            residual=residual,
            norm=tuple(norm),
        )
    return work.prepared(y)
