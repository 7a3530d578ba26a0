"""Launch plan of swiglu_mlp (csrc/cuda/swiglu_mlp.cuh): a gated product and a product."""

from __future__ import annotations

from typing import Any

from flashvl_kernels.cuda import product_plan
from flashvl_kernels.cuda.device import Device
from flashvl_kernels.cuda.launch import Instance, Prepared

KERNELS = "linear"
"""They are those of linear."""


def instances() -> list[Instance]:
    """The kernels to build."""
    return product_plan.instances()


def why_not(*flat: Any) -> str | None:
    """Why a call on schema arguments cannot run, or None."""
    if not flat:
        return None
    return product_plan.why_not_weight("w_gate_up", flat[5]) or product_plan.why_not_weight(
        "w_down", flat[9]
    )


def prepare(flat: tuple[Any, ...], device: Device) -> Prepared:
    """A call on schema arguments."""
    x, norm_weight, eps, *weights = flat
    y = x.new_empty(x.shape)
    work = product_plan.Products(device)
    if y.numel() == 0:
        return work.prepared(y)
    gated = product_plan.between(work, "gated", x, weights[0].shape[0] // 2)
    if gated.numel():
        product_plan.product(
            work,
            x,
            tuple(weights[:4]),
            gated,
            names=("x", "w_gate_up", "gated"),
            activation="gated",
            norm=(norm_weight, None, eps),
        )
    product_plan.product(
        work, gated, tuple(weights[4:]), y, names=("gated", "w_down", "y"), residual=x
    )
    return work.prepared(y)
