"""Launch plan of layer_norm (csrc/cuda/layer_norm.cuh)."""

from __future__ import annotations

from typing import Any

from flashvl_kernels.cuda import norm_plan
from flashvl_kernels.cuda.device import Device
from flashvl_kernels.cuda.launch import Instance, Prepared


def instances() -> list[Instance]:
    """The kernels to build."""
    return norm_plan.instances("layer_norm")


def prepare(flat: tuple[Any, ...], device: Device) -> Prepared:
    """A call on schema arguments."""
    x, weight, bias, eps, residual = flat
    return norm_plan.prepare("layer_norm", x, weight, bias, eps, residual, device)
