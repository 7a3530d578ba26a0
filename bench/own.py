"""`bench_op`: a function of your own, measured and judged like the ops of this package.

    from flashvl_bench.own import bench_op
    from flashvl_kernels.spec import Cost

    x = torch.randn(1024, 4096)
    print(bench_op(my_norm, (x,), cost=Cost(x.nbytes, x.nbytes, 4 * x.numel()), reference=norm))

`reference` is the plain expression it replaces: it takes turns with the function as a second
contender, and in float64 it is the oracle. The rule is that of `flashvl_kernels.numerics`. Without
a reference nothing can be said of the result, and the row says so. Tensors on a GPU are measured
there, with events and graphs (gpu/timing.py), and the reference runs in float64 there too.

A file for `flashvl-bench gate --cases FILE` defines `cases()`, which yields `OwnCase`s.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from flashvl_bench import ceilings, machine
from flashvl_bench.ceilings import NAMES, Ceilings
from flashvl_bench.gpu.target import GpuTarget
from flashvl_bench.timing import (
    Budget,
    Clock,
    Contender,
    Timer,
    Times,
    WallClock,
    interleave,
)
from flashvl_kernels import backends, numerics
from flashvl_kernels.spec import Cost

UNJUDGED = "not judged: no reference"


@dataclass(frozen=True)
class OwnCase:
    """One call of a function: `run(*args)` with tensors among the args, and its name in reports.

    cost: bytes and FLOPs any implementation must move and do. reference: the plain expression.
    """

    name: str
    run: Callable[..., Any]
    args: tuple[Any, ...]
    cost: Cost | None = None
    reference: Callable[..., Any] | None = None

    @property
    def dtype(self) -> str:
        """Of the first tensor of floats; fp32 where there is none."""
        kinds = [a.dtype for a in self.args if isinstance(a, Tensor) and a.dtype in NAMES]
        return NAMES[kinds[0]] if kinds else "fp32"

    def fault(self) -> tuple[str, str] | None:
        """("fails" or "wrong", why), or None where the call is right as far as can be told."""
        try:
            got = _outputs(self.run, self.args)
        except Exception as error:  # a kernel may raise anything; the row says what
            return "fails", f"{type(error).__name__}: {error}"
        if self.reference is None:
            return None
        plain = _outputs(self.reference, self.args)
        truth = _outputs(self.reference, tuple(numerics.widen(a) for a in self.args))
        if len(got) != len(truth):
            return "wrong", f"{len(got)} outputs; needs {len(truth)}"
        for i, (mine, theirs, exact) in enumerate(zip(got, plain, truth, strict=True)):
            verdict = numerics.judge(mine, theirs, exact)
            if not verdict.right:
                return "wrong", f"output {i}: {verdict.reason}"
        return None


def _outputs(run: Callable[..., Any], args: tuple[Any, ...]) -> list[Tensor]:
    """Results on a copy of the arguments, so that a function may write into them."""
    with torch.no_grad():
        found = numerics.outputs(run(*numerics.duplicate(args)))
    return [each for each in found if isinstance(each, Tensor)]


@dataclass(frozen=True)
class OwnRow:
    """One measured function. status: "ok", "wrong" or "fails"; only "ok" has times.

    fraction: the least time the ceilings allow for `cost` over the median; bound: what sets it.
    launch, reference_launch: on a GPU, "graph" or "eager".
    """

    name: str
    dtype: str
    status: str
    reason: str = ""
    seconds: tuple[float, ...] = ()
    reference_seconds: tuple[float, ...] = ()
    cost: Cost | None = None
    fraction: float | None = None
    bound: str = ""
    launch: str = ""
    reference_launch: str = ""

    @property
    def median(self) -> float | None:
        """Of the times; None where there are none."""
        return Times(self.seconds).median if self.seconds else None

    def __str__(self) -> str:
        from flashvl_bench.report import duration, launch

        if self.median is None:
            return f"{self.name} {self.dtype}: {self.status.upper()}: {self.reason}"
        own = Times(self.seconds)
        parts = [f"{duration(own.median)} +- {duration(own.iqr)} (n {len(self.seconds)})"]
        if self.cost is not None and self.fraction is not None:
            parts.append(f"{self.cost.bytes / own.median / 1e9:.3g} GB/s")
            parts.append(f"{self.cost.flops / own.median / 1e9:.3g} GFLOP/s")
            parts.append(f"{self.fraction:.0%} of the {self.bound} ceiling")
        if self.reference_seconds:
            parts.append(f"{Times(self.reference_seconds).median / own.median:.2f}x the reference")
        if self.launch:
            parts.append(launch(self.launch, self.reference_launch or self.launch))
        return f"{self.name} {self.dtype}: {', '.join([*parts, *filter(None, [self.reason])])}"


@cache
def _ceilings(threads: int) -> Ceilings:
    return ceilings.measure(machine.last_level_cache(), quick=True)


@cache
def _gpu(index: int) -> tuple[GpuTarget, Ceilings]:
    target = GpuTarget()
    return target, target.ceilings(quick=True)


def bench_op(
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    cost: Cost | None = None,
    reference: Callable[..., Any] | None = None,
    name: str = "",
    *,
    budget: Budget | None = None,
    warm: bool = False,
    top: Ceilings | None = None,
    cache_bytes: int | None = None,
    clock: Clock = time.perf_counter,
    timer: Timer | None = None,
) -> OwnRow:
    """Judge `fn(*args)` against `reference`, then time both in turns with a cold cache.

    The tensors are all on the CPU, or all on the current GPU.

    top: ceilings to measure against; measured once a process otherwise (2 s), and only if there is
    a cost. cache_bytes: of the last-level cache, as the system reports it otherwise. timer: instead
    of `clock` or the GPU's events.
    """
    named = name or getattr(fn, "__name__", repr(fn))
    case = OwnCase(named, fn, args, cost, reference)
    fault = case.fault()
    if fault is not None:
        return OwnRow(case.name, case.dtype, *fault)
    machine.keep_freed_memory()
    if timer is None and backends.device_of(args) == "cuda":
        on, found = _gpu(torch.cuda.current_device())
        timer, top = on.timer, top or found
    if timer is None:
        size = machine.last_level_cache() if cache_bytes is None else cache_bytes
        timer = WallClock(size, clock)
    contenders = [Contender("own", fn)]
    if reference is not None:
        contenders.append(Contender("reference", reference))
    rotation = timer.rotation(args, warm)
    times = interleave(contenders, rotation, budget or Budget(), timer=timer)
    own, plain = times["own"], times.get("reference", Times(()))
    row = OwnRow(
        case.name,
        case.dtype,
        "ok",
        "" if reference is not None else UNJUDGED,
        own.seconds,
        plain.seconds,
        launch=own.launch,
        reference_launch=plain.launch,
    )
    if cost is None:
        return row
    least, bound = (top or _ceilings(torch.get_num_threads())).least_time(cost, case.dtype)
    return replace(row, cost=cost, fraction=least / own.median, bound=bound)
