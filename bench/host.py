"""`flashvl-bench host`: what a call of a GPU op costs on the host, up to the driver. Needs no GPU.

Every op is called on CPU tensors of its first typical sample, as eager code calls it: checks, the
choice of the backend, the outputs, the launch plan, the way to the driver. Stand-ins answer for
what needs a GPU: compiled kernels, Triton's launcher, the functions of the CUDA driver. So these
are not in the figures: PyTorch's allocator of GPU memory (the CPU's is), asking it for the current
device and stream, Triton's packing of arguments, and the driver itself. A figure is the least of
many batches of calls, which what else the machine does disturbs least.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

from flashvl_bench import machine
from flashvl_kernels import backend, backends, triton
from flashvl_kernels.spec import REGISTRY, OpSpec, capture

Clock = Callable[[], float]
CALLS = 20
"""Calls of a batch: short enough for batches to fit between two interruptions."""
NAMES = ("triton", "cuda")


@dataclass(frozen=True)
class Row:
    """One op on one backend: launches a call, and seconds a call and of its launch plan.

    seconds: the whole call. planned: without checks and the choice of the backend. uncached: as
    planned, with every launch Triton's own; 0 for CUDA. refused: why the backend does not run the
    sample; no figures then.
    """

    op: str
    backend: str
    sample: str
    launches: int = 0
    seconds: float = 0.0
    planned: float = 0.0
    uncached: float = 0.0
    refused: str = ""


class Counter:
    """Stands in for kernels and the driver's functions, and counts launches."""

    def __init__(self) -> None:
        self.launches = 0

    def launch(self, *_: Any) -> tuple[int]:
        self.launches += 1
        return (0,)

    def accept(self, *_: Any) -> tuple[int]:
        return (0,)


@contextmanager
def triton_stand_in(counter: Counter) -> Iterator[None]:
    """Triton compiles nothing and launches into `counter`, as if for an H100."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    from flashvl_kernels.triton import dispatch

    kernel = SimpleNamespace(
        run=counter.launch, function=1, packed_metadata=(), launch_metadata=lambda *_: None
    )
    active = SimpleNamespace(
        get_current_device=lambda: 0,
        get_current_stream=lambda _: 0,
        get_current_target=lambda: GPUTarget("cuda", 90, 32),
    )

    used: list[JITFunction[Any]] = []

    def compiled(function: JITFunction[Any], key: str, *_: Any) -> Any:
        function.device_caches[0][0][key] = kernel
        used.append(function)
        return kernel

    before = driver._active
    driver.set_active(active)
    dispatch.forget()
    try:
        with (
            mock.patch.object(JITFunction, "_do_compile", compiled),
            mock.patch.object(triton, "unavailable", lambda _: None),
        ):
            yield
    finally:
        driver._active = before
        dispatch.forget()
        for function in used:
            function.device_caches.clear()


@contextmanager
def cuda_stand_in(counter: Counter) -> Iterator[None]:
    """The CUDA driver loads nothing and launches into `counter`, on an H100."""
    from flashvl_kernels.cuda import driver

    functions = SimpleNamespace(
        CUfunction_attribute=SimpleNamespace(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES=8),
        cuLaunchKernel=counter.launch,
        cuFuncSetAttribute=counter.accept,
        cuModuleLoadData=lambda *_: (0, 1),
        cuModuleGetFunction=lambda *_: (0, 1),
    )
    stream = SimpleNamespace(cuda_stream=0)
    image = SimpleNamespace(image=b"", entry="kernel")
    with ExitStack() as stack:
        for owner, name, value in (
            (driver, "_driver", lambda: functions),
            (driver.nvrtc, "compile", lambda *_: image),
            (driver, "_carried", lambda _: None),
            (torch.cuda, "current_stream", lambda _: stream),
            (backends, "_why_not_cuda", lambda _: None),
        ):
            stack.enter_context(mock.patch.object(owner, name, value))
        driver.function.cache_clear()
        driver._module.cache_clear()
        stack.callback(driver._module.cache_clear)
        stack.callback(driver.function.cache_clear)
        yield


STAND_INS: dict[str, Callable[[Counter], AbstractContextManager[None]]] = {
    "triton": triton_stand_in,
    "cuda": cuda_stand_in,
}


def least(call: Callable[[], Any], seconds: float, clock: Clock = time.perf_counter) -> float:
    """Seconds of one call in the fastest batch of those that fit into `seconds`."""
    found, end = float("inf"), clock() + seconds
    while True:
        start = clock()
        for _ in range(CALLS):
            call()
        stop = clock()
        found = min(found, (stop - start) / CALLS)
        if stop >= end:
            return found


def measure(spec: OpSpec, name: str, seconds: float, clock: Clock = time.perf_counter) -> Row:
    """The row of one op on one backend."""
    sample = next(s for s in spec.samples if s.kind == "typical")
    built = sample.build(torch.bfloat16)
    flat = capture(spec.function, *built.args, **built.kwargs)[1]
    counter = Counter()
    with (
        torch.no_grad(),
        STAND_INS[name](counter),
        backend(name),
        mock.patch.object(backends, "device_of", lambda _: "cuda"),
    ):
        reason = backends.why_not(spec, name, flat, "cuda")
        if reason is not None:
            return Row(spec.name, name, sample.name, refused=reason)
        kernel = backends.choose(spec, flat, "cuda")
        spec(*flat)
        launches = counter.launches
        whole = least(lambda: spec(*flat), seconds, clock)
        planned = least(lambda: kernel.run(*flat), seconds, clock)
        uncached = 0.0
        if name == "triton":
            from flashvl_kernels.triton import dispatch

            with mock.patch.object(dispatch, "DIRECT", False):
                uncached = least(lambda: kernel.run(*flat), seconds, clock)
    return Row(spec.name, name, sample.name, launches, whole, planned, uncached)


def table(rows: Sequence[Row]) -> str:
    """The rows as text."""
    names = f"{'launches':>8} {'call µs':>9} {'planned µs':>11} {'uncached µs':>12}"
    lines = [f"{'op':<24} {'backend':<8} {names}"]
    for row in rows:
        start = f"{row.op:<24} {row.backend:<8}"
        if row.refused:
            lines.append(f"{start} refuses {row.sample!r}: {row.refused}")
            continue
        uncached = f"{row.uncached * 1e6:.1f}" if row.uncached else "-"
        lines.append(
            f"{start} {row.launches:>8} {row.seconds * 1e6:>9.1f} {row.planned * 1e6:>11.1f} "
            f"{uncached:>12}"
        )
    return "\n".join(lines)


def main(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    """The command; returns the exit status: 2 where no backend asked for can be measured."""
    for option, given, known in (
        ("op", options.op, sorted(REGISTRY)),
        ("backend", options.backend, NAMES),
    ):
        for word in given:
            if word not in known:
                parser.error(f"--{option} is {word!r}; needs {', '.join(known)}")
    return run(options.op, options.backend or NAMES, options.seconds or 0.5)


def run(ops: Sequence[str], names: Sequence[str], seconds: float) -> int:
    """Measures and prints; returns the exit status."""
    missing = triton.missing()
    if missing is not None and "triton" in names:
        print(f"not triton: {missing}")
        names = [name for name in names if name != "triton"]
    if not names:
        return 2
    load = os.getloadavg()[0]
    print(f"host cost of this machine, no GPU involved: {machine.facts().cpu}, load {load:.1f}")
    specs = [REGISTRY[op] for op in ops] if ops else list(REGISTRY.values())
    rows = [
        measure(spec, name, seconds) for spec in specs for name in names if name in spec.kernels
    ]
    print(table(rows))
    return 0
