"""Launches a kernel through what an equal launch before it compiled.

Triton's own launch binds the arguments, asks for each what it is specialised for, makes a text of
all that to look the kernel up by, and reads the environment. All of it follows from the values of
the integers and the dtypes and alignment of the tensors: they are the key here, and a launch whose
key was seen goes straight to Triton's launcher. `flashvl-bench host` shows what that saves.
"""

from __future__ import annotations

from typing import Any

import triton
from torch import Tensor, nn
from triton.runtime import driver

from flashvl_kernels.triton.launch import VECTOR_BYTES

DIRECT = triton.__version__.startswith("3.8.")
"""Whether the parts of Triton used here are those of the version the tests run."""
MOST = 4096
"""Keys that are kept: every length of a prompt is one for each kernel it passes."""

_COMPILED: dict[tuple[Any, ...], tuple[Any, tuple[Any, ...], Any]] = {}
_BY_TRITON: dict[int, Any] = {}  # what Triton's own launches returned, by id, for `compiled`
_TENSORS = frozenset((Tensor, nn.Parameter))


def queue(kernel: Any, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
    """`kernel[grid](*args, **constants)`; `args` are its run-time parameters, a tensor first.

    On the stream of that tensor's device, which is the current one (`launch.on`). While a profiler
    has hooks on launches, or under another version of Triton, the launch is Triton's own.
    """
    if not DIRECT or _hooked():
        compiled = kernel[grid](*args, **constants)
        _BY_TRITON[id(compiled)] = compiled
        return
    device = args[0].get_device()
    key = _key(kernel, device, args, constants)
    found = _COMPILED.get(key)
    if found is None:
        compiled = kernel[grid](*args, **constants)
        if compiled is not None:  # None from what stands in for a launch in tests
            _remember(key, kernel, compiled, len(args), constants)
        return
    compiled, fixed, _ = found
    x, y, z = (*grid, 1, 1)[:3]
    stream = driver.active.get_current_stream(device)
    compiled.run(
        x, y, z, stream, compiled.function, compiled.packed_metadata, None, None, None,
        *args, *fixed,
    )  # fmt: skip


def _hooked() -> bool:
    runtime = triton.knobs.runtime
    return bool(runtime.launch_enter_hook.calls or runtime.launch_exit_hook.calls)


def _key(
    kernel: Any, device: int, args: tuple[Any, ...], constants: dict[str, Any]
) -> tuple[Any, ...]:
    """What decides which compiled kernel runs: Triton specialises integers by value (1, multiples
    of 16, 64 bits) and pointers by alignment, floats by nothing."""
    parts: list[Any] = [id(kernel), device, *constants.items()]
    for arg in args:
        kind = type(arg)
        if kind is int:
            parts.append(arg)
        elif kind in _TENSORS:
            parts.append(arg.dtype)
            parts.append(arg.data_ptr() % VECTOR_BYTES)
        elif kind is float:
            parts.append(float)
        else:
            parts.append((kind, arg))
    return tuple(parts)


def _remember(
    key: tuple[Any, ...], kernel: Any, compiled: Any, given: int, constants: dict[str, Any]
) -> None:
    if len(_COMPILED) >= MOST:
        _COMPILED.clear()
    fixed = tuple(constants[name] for name in kernel.arg_names[given:])
    _COMPILED[key] = compiled, fixed, kernel  # kept, or another kernel might get its id


def forget() -> None:
    """Forget every compiled kernel, e.g. after a test that stood in for the driver."""
    _COMPILED.clear()
    _BY_TRITON.clear()


def compiled() -> list[Any]:
    """The compiled kernels launched since `forget`."""
    found = {id(kernel): kernel for kernel, _, _ in _COMPILED.values()} | _BY_TRITON
    return [kernel for kernel in found.values() if kernel is not None]
