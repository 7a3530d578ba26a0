"""Compiles the kernels of launches before they are timed, in processes beside each other.

A launch is recorded, not declared: the launcher runs on meta tensors of the call's shapes with the
choice forced, and what it would launch is described by what Triton specialises a kernel for. Equal
descriptions are compiled once. Processes share nothing but Triton's cache on the disk, where the
launch that is timed finds its kernel; they open no GPU, whose target they are told.
"""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from flashvl_kernels.gpu import Device
from flashvl_kernels.triton import launch

GRACE = 20.0
"""Seconds that kernels under way have when the time is over."""

Target = tuple[str, int | str, int]
"""Backend, architecture and warp, as Triton's GPUTarget takes them."""


@dataclass(frozen=True)
class Kernel:
    """A kernel as it is specialised. args: a dtype for a tensor, else a number of its kind."""

    module: str
    name: str
    args: tuple[Any, ...]
    constants: tuple[tuple[str, Any], ...]


def described(kernel: Any, args: tuple[Any, ...], constants: dict[str, Any]) -> Kernel:
    """Triton asks an integer whether it is 1, a multiple of 16 and within 32 bits. Tensors count as
    aligned to 16 bytes, as fresh ones are."""
    return Kernel(
        kernel.fn.__module__,
        kernel.fn.__name__,
        tuple(map(_kind, args)),
        tuple(sorted(constants.items())),
    )


def _kind(arg: Any) -> Any:
    if isinstance(arg, Tensor):
        return arg.dtype
    if isinstance(arg, float):
        return 0.5
    if not isinstance(arg, int) or isinstance(arg, bool) or arg == 1:
        return arg
    least = 16 if arg % 16 == 0 else 17
    return least + (0 if -(2**31) <= arg < 2**31 else 2**32)


@contextmanager
def recording(device: Device) -> Iterator[list[Kernel]]:
    """Launches inside run nothing: what they would launch on `device` is in the list."""
    from triton.runtime.jit import JITFunction

    found: list[Kernel] = []

    def run(kernel: Any, *args: Any, grid: Any, warmup: bool, **constants: Any) -> None:
        found.append(described(kernel, args, constants))

    launched, told = JITFunction.run, launch.describe
    JITFunction.run, launch.describe = run, lambda _: device  # type: ignore[assignment, misc]
    try:
        yield found
    finally:
        JITFunction.run, launch.describe = launched, told  # type: ignore[method-assign]


# ---- in a compiling process --------------------------------------------------------------------


def _enter(target: Target) -> None:
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    torch.set_num_threads(1)
    told = GPUTarget(*target)
    driver.set_active(
        SimpleNamespace(
            get_current_target=lambda: told,
            get_current_device=lambda: 0,
            get_current_stream=lambda _=0: 0,
        )
    )


def _compile(kernel: Kernel) -> str:
    """Why the compiler refuses the kernel; empty where it is in the cache."""
    try:
        function = getattr(importlib.import_module(kernel.module), kernel.name)
        function.warmup(*kernel.args, grid=(1,), **dict(kernel.constants))
    except Exception as error:  # whatever the compiler raises
        return f"{type(error).__name__}: {error}"[:200]
    return ""


# ---- the pool ----------------------------------------------------------------------------------


def compile_all(
    kernels: Iterable[Kernel], target: Target, jobs: int, until: float
) -> dict[Kernel, str]:
    """Compile in the order given, until `until` of `time.monotonic`: the reasons, as `_compile`
    gives them. A kernel that is not in the answer was not reached."""
    done: dict[Kernel, str] = {}
    pool = ProcessPoolExecutor(
        jobs, mp_context=get_context("spawn"), initializer=_enter, initargs=(target,)
    )
    started: dict[Future[str], Kernel] = {pool.submit(_compile, each): each for each in kernels}
    try:
        wait(started, max(min(until - time.monotonic(), threading.TIMEOUT_MAX), 0))
        running = [future for future in started if not future.cancel()]
        wait(running, GRACE)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    for future in running:
        if future.done():
            lost = future.exception()  # a process that was killed takes all others' with it
            done[started[future]] = future.result() if lost is None else repr(lost)
    return done
