"""The CUDA backend: one module an op plans its launches; the kernels are csrc/cuda/<op>.cuh.

A plan module has `instances()`, the kernels it may name, and `prepare(flat, device)`, a call's
outputs and launches. It imports nothing that needs CUDA.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType


@cache  # asked for at every launch, and a search of the file system
def plan_module(op: str) -> ModuleType | None:
    """The module that plans `op`, or None where the op has no CUDA kernel yet."""
    name = f"{__name__}.{op}"
    return import_module(name) if find_spec(name) else None


def kernels_of(op: str) -> str:
    """The op whose csrc/cuda/<op>.cuh is compiled for `op`: itself, or what its plan names as
    KERNELS, so that kernels which several ops launch are compiled once."""
    return getattr(plan_module(op), "KERNELS", op)
