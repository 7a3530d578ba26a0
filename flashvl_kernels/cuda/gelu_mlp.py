"""Launch plan of gelu_mlp (csrc/cuda/gelu_mlp.cuh): two products."""

from __future__ import annotations

from typing import Any

from flashvl_kernels.cuda import product_plan
from flashvl_kernels.cuda.device import Device
from flashvl_kernels.cuda.launch import Instance, Prepared

ACTIVATIONS = {"none": "gelu", "tanh": "gelu_tanh"}
KERNELS = "linear"
"""They are those of linear."""


def instances() -> list[Instance]:
    """The kernels to build."""
    return product_plan.instances()


def why_not(*flat: Any) -> str | None:
    """Why a call on schema arguments cannot run, or None."""
    if not flat:
        return None
    return product_plan.why_not_weight("w1", flat[6]) or product_plan.why_not_weight("w2", flat[11])


def prepare(flat: tuple[Any, ...], device: Device) -> Prepared:
    """A call on schema arguments."""
    x, *norm = flat[:4]
    w1, b1, w2, b2, approximate = flat[4:8], flat[8], flat[9:13], flat[13], flat[14]
    y = x.new_empty(x.shape)
    work = product_plan.Products(device)
    if y.numel() == 0:
        return work.prepared(y)
    hidden = product_plan.between(work, "hidden", x, w1[0].shape[0])
    if hidden.numel():
        product_plan.product(
            work,
            x,
            w1,
            hidden,
            names=("x", "w1", "hidden"),
            bias=b1,
            activation=ACTIVATIONS[approximate],
            norm=tuple(norm),
        )
    product_plan.product(work, hidden, w2, y, names=("hidden", "w2", "y"), bias=b2, residual=x)
    return work.prepared(y)
