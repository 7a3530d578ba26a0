"""Launch plan of rms_norm (csrc/cuda/rms_norm.cuh)."""

from __future__ import annotations

from typing import Any

from flashvl_kernels.cuda import norm_plan
from flashvl_kernels.cuda.device import Device
from flashvl_kernels.cuda.launch import Instance, Prepared


def instances() -> list[Instance]:
    """The kernels to build."""
    return norm_plan.instances("rms_norm")


def prepare(flat: tuple[Any, ...], device: Device) -> Prepared:
    """A call on schema arguments."""
    x, weight, eps, residual = flat
    return norm_plan.prepare("rms_norm", x, weight, None, eps, residual, device)
