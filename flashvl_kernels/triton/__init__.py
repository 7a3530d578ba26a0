"""The Triton backend: one file an op, `flashvl_kernels/triton/<op>.py`.

Such a file holds the op's `@triton.jit` kernels, `run(*schema_args)`, which allocates the outputs
and launches on the tensors' device, and `why_not(*schema_args)`, the reason a call is not
supported. This file imports neither triton nor any of them: triton is optional, and importing it
takes a second that a process without a GPU need not pay. docs/triton.md says how to write one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module, metadata
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch

MINIMUM = (3, 4)
"""Older versions are refused. 3.8.0 is the one the tests run; docs/triton.md says what was tried
with others."""


@cache  # asked at every call on a GPU, and a search of the file system
def version() -> str | None:
    """The installed Triton, e.g. "3.8.0"; None where there is none."""
    if find_spec("triton") is None:
        return None
    for name in ("triton", "pytorch-triton", "pytorch-triton-rocm", "triton-windows"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "unknown"


@cache
def missing() -> str | None:
    """Why Triton kernels cannot be compiled here, in words a user can act on; None if they can."""
    found = version()
    if found is None:
        return "triton is not installed; pip install triton"
    numbers = found.split("+")[0].split(".")[:2]
    needed = ".".join(map(str, MINIMUM))
    if all(part.isdigit() for part in numbers) and tuple(map(int, numbers)) < MINIMUM:
        return f"triton is {found}; the kernels need {needed} or newer: pip install -U triton"
    try:
        import_module("triton.language")
    except Exception as error:  # whatever a broken install raises
        return f"triton {found} is installed but does not import: {error}; reinstall it"
    return None


@cache  # it asks the driver, or NVML, every time
def has_gpu() -> bool:
    """PyTorch sees a CUDA or ROCm GPU."""
    return torch.cuda.is_available()


def unavailable(device: str) -> str | None:
    """Why no Triton kernel can run tensors on `device` (a type such as "cuda"); None if one can."""
    if version() is None:
        return missing()
    if not has_gpu():
        return "torch sees no CUDA or ROCm GPU on this machine; use the cpu or torch backend"
    if device != "cuda":
        return f"the tensors are on {device}; move them to cuda or use the torch backend"
    return missing()


def module(op: str) -> ModuleType:
    """The file of `op`'s kernels, imported on first use. Raises ImportError without triton."""
    return import_module(f"flashvl_kernels.triton.{op}")


def supports(op: str) -> Callable[..., str | None]:
    """The `kernels["triton"]` entry of `op`: asks `why_not` of its file, once triton is there."""

    def why_not(*args: Any) -> str | None:
        return missing() or module(op).why_not(*args)

    return why_not
