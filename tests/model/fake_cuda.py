"""Fake CUDA tensors on a machine and a PyTorch without CUDA.

FakeTensorMode makes tensors whose device is "cuda" anywhere, but indexing one asks PyTorch for the
guard that switches the current device, and a CPU build has none. Meta tensors have one that does
nothing; it stands in while a test runs.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

CUDA, META = 1, 14
"""c10::DeviceType."""


@contextmanager
def fake_cuda() -> Iterator[FakeTensorMode]:
    """A mode, to be entered inside, whose tensors may lie on "cuda"; without gradients."""
    registry, before = _guards(), None
    if registry is not None:
        before = registry[CUDA]
        registry[CUDA] = before or registry[META]
    try:
        with torch.no_grad():
            yield FakeTensorMode(shape_env=ShapeEnv())
    finally:
        if registry is not None:
            registry[CUDA] = before


def _guards() -> ctypes.Array[ctypes.c_void_p] | None:
    """c10's table of guards by device type. None where PyTorch brings CUDA's own."""
    if torch.version.cuda is not None or torch.version.hip is not None:
        return None
    library = Path(torch.__file__).parent / "lib" / "libc10.so"
    name = "_ZN3c104impl26device_guard_impl_registryE"
    try:
        table = (ctypes.c_void_p * (META + 1)).in_dll(ctypes.CDLL(str(library)), name)
    except (OSError, ValueError) as error:
        pytest.skip(f"this PyTorch has no CUDA and hides its table of device guards: {error}")
    if not table[META]:
        pytest.skip("this PyTorch numbers its devices otherwise than 2.13 does")
    return table
