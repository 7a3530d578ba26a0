"""Runs prepared launches on a GPU, on PyTorch's current stream: kernels that the extension carries
(built.py), else those of nvrtc.py.

Loading a kernel needs its compilation once and belongs before a CUDA graph's capture; a launch
itself allocates nothing and waits for nothing.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import torch
from torch import Tensor

from flashvl_kernels import gpu
from flashvl_kernels.cuda import built, nvrtc, plan_module
from flashvl_kernels.cuda.launch import Instance, Launch, Prepared


class DriverError(RuntimeError):
    """The CUDA driver refused a call; the text names both."""


@cache
def why_not() -> str | None:
    """The reason no CUDA kernel can run in this process, or None."""
    if torch.version.cuda is None:
        return "this PyTorch is built without CUDA; install a CUDA build of torch"
    if not torch.cuda.is_available():
        return "PyTorch finds no CUDA device (torch.cuda.is_available())"
    try:
        _driver()
    except ImportError as error:
        return f"cuda-python is not here ({error}): pip install 'flashvl-kernels[cuda]'"
    return None


@cache
def why_not_on(capability: int) -> str | None:
    """The reason kernels cannot run on a GPU of `capability` (90 for sm_90), or None."""
    if _carried(capability) is not None:
        return None
    if nvrtc.unavailable() is not None:
        return nvrtc.unavailable()
    try:
        nvrtc.target(capability)
    except nvrtc.CompileError as error:
        return str(error)
    return None


def _carried(capability: int) -> built.Archive | None:
    """The extension's kernels, where it has some for a GPU of `capability`."""
    found = built.archive()
    return found if found is not None and found.covers(capability) else None


def run(op: str, *flat: Any) -> Any:
    """The op on schema arguments, whose tensors are on one CUDA device."""
    plan = plan_module(op)
    assert plan is not None, f"{op} claims a CUDA kernel"
    where = next(arg.device for arg in flat if isinstance(arg, Tensor))
    with gpu.on(where):
        here = gpu.describe(where)
        prepared: Prepared = plan.prepare(flat, here)
        stream = torch.cuda.current_stream(where).cuda_stream
        for launch in prepared.launches:
            start(function(where.index, op, launch.kernel, here.capability), launch, stream)
    outputs = prepared.outputs
    return outputs[0] if len(outputs) == 1 else outputs


@cache
def function(index: int, op: str, kernel: Instance, capability: int) -> Any:
    """The kernel loaded on device `index`, whose context is current."""
    carried = _carried(capability)
    if carried is not None:
        image, entry = carried.kernel(op, kernel)
    else:
        compiled = nvrtc.compile(op, kernel, capability)
        image, entry = compiled.image, compiled.entry
    return _call("cuModuleGetFunction", _module(index, image), entry.encode())


@cache
def _module(index: int, image: bytes) -> Any:
    """`image` loaded on device `index`, whose context is current; one may hold many kernels."""
    return _call("cuModuleLoadData", image)


def start(loaded: Any, launch: Launch, stream: int) -> None:
    """Queue one launch on `stream`."""
    # Above 48 KiB a block must ask, and what the kernel declares itself counts: 48 KiB of dynamic
    # memory and one static word are refused. To ask for less costs nothing.
    if launch.shared_bytes:
        _allow(loaded, launch.shared_bytes)
    # The driver copies the one parameter, a struct, before it returns.
    parameters = (ctypes.c_void_p * 1)(ctypes.addressof(launch.arguments))
    size = (*launch.grid, *launch.block, launch.shared_bytes)
    _call("cuLaunchKernel", loaded, *size, stream, ctypes.addressof(parameters), 0)


_ALLOWED: dict[Any, int] = {}
"""Bytes of dynamic shared memory that each function was allowed; it keeps them."""


def _allow(loaded: Any, shared_bytes: int) -> None:
    if _ALLOWED.get(loaded, 0) >= shared_bytes:
        return
    attribute = _driver().CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    _call("cuFuncSetAttribute", loaded, attribute, shared_bytes)
    _ALLOWED[loaded] = shared_bytes


@cache
def _driver() -> Any:
    from cuda.bindings import driver

    return driver


def _call(name: str, *args: Any) -> Any:
    """A function of the driver: its result, or None where it has none."""
    status, *found = getattr(_driver(), name)(*args)
    if int(status):
        text = _driver().cuGetErrorString(status)[1].decode()
        raise DriverError(f"{name}: {text}")
    return found[0] if found else None
