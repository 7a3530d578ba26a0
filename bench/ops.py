"""`flashvl-bench ops`: each op on each backend, beside the plain PyTorch expression.

A row shows a time only for a kernel that ran and whose result is right. The plain expression (the
op's reference) takes turns with the backends in the same rounds, on the same rotating arguments.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import torch

from flashvl_bench import ceilings, machine, report, schema
from flashvl_bench.cases import (
    Case,
    Judge,
    asked_backends,
    kernel_name,
    placed,
    refusal,
    runner,
    select,
)
from flashvl_bench.ceilings import NAMES, Ceilings
from flashvl_bench.gpu.target import GpuTarget, doubts
from flashvl_bench.machine import Machine
from flashvl_bench.timing import (
    Budget,
    Clock,
    Contender,
    Flat,
    Timer,
    Times,
    WallClock,
    interleave,
)
from flashvl_kernels import numerics
from flashvl_kernels.spec import Cost, OpSpec

PLAIN = "plain"  # the contender that is the reference, outside of the registered op

_ON_GPU = (
    "backends and the plain PyTorch expression take turns; median and distance of the quartiles of "
    "n calls, each between two CUDA events; `graph`: replayed as a CUDA graph, `eager`: called, "
    "with what of its launch the device waits for; gradients off"
)
GPU_COLD = f"cold cache: a buffer of twice the L2 cache is written before each call; {_ON_GPU}"
GPU_WARM = f"warm cache: each call follows itself with the same arguments; {_ON_GPU}"


@dataclass(frozen=True)
class Settings:
    """How the cases are measured."""

    ops: tuple[str, ...] = ()
    backends: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    quick: bool = False
    warm: bool = False
    budget: Budget = field(default_factory=Budget)
    device: str = "cpu"
    families: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """One case on one backend. Only a row of status "ok" has times (`seconds`, `plain_seconds`).

    status: ok, "falls back" (the backend asked for does not run this call), "wrong" (the result
    breaks the numerics rule) or "fails" (the kernel raised); `reason` says more.
    fraction: least time by the ceilings over the median; bound: what the least time comes from.
    launch, plain_launch: on a GPU, "graph" or "eager", of the kernel and of the plain expression.
    """

    op: str
    sample: str
    family: str
    dtype: str
    asked: str
    status: str
    reason: str = ""
    backend: str = ""
    kernel: str = ""
    bytes_read: int = 0
    bytes_written: int = 0
    flops: int = 0
    seconds: tuple[float, ...] = ()
    plain_seconds: tuple[float, ...] = ()
    median: float | None = None
    iqr: float | None = None
    plain_median: float | None = None
    bytes_per_second: float | None = None
    flops_per_second: float | None = None
    fraction: float | None = None
    bound: str = ""
    copies: int = 0
    swept: bool = False
    launch: str = ""
    plain_launch: str = ""


def measure_case(
    case: Case,
    asked: Sequence[str],
    top: Ceilings,
    settings: Settings,
    cache_bytes: int,
    clock: Clock = time.perf_counter,
    timer: Timer | None = None,
) -> list[Row]:
    """A row for each backend of `asked`; those that run and are right are timed in turns.

    timer: by default `clock`, with a last-level cache of cache_bytes.
    """
    spec, made = case.spec, case.flat()
    flat = placed(made, case.device)
    timer = timer or WallClock(cache_bytes, clock)
    blank = partial(Row, spec.name, case.sample.name, case.sample.family, NAMES[case.dtype])
    reasons = {name: refusal(spec, name, flat) for name in asked}
    running = [name for name in asked if reasons[name] is None]
    contenders = {name: runner(spec, name, flat) for name in running}
    faults = _faults(Judge(spec, made), spec, contenders, flat) if running else {}
    fair = [name for name in running if name not in faults]
    times: dict[str, Times] = {}
    if fair:
        rotation = timer.rotation(flat, settings.warm)
        sides = [Contender(PLAIN, spec.reference), *(contenders[name] for name in fair)]
        times = interleave(sides, rotation, settings.budget, timer=timer)
    rows = []
    for name in asked:
        if reasons[name] is not None:
            rows.append(blank(name, "falls back", str(reasons[name])))
            continue
        backend, kernel = kernel_name(spec, name, flat)
        if name in faults:
            status, reason = faults[name]
            rows.append(blank(name, status, reason, backend, kernel))
            continue
        figures = _figures(spec.cost(*flat), times[name], times[PLAIN], top, NAMES[case.dtype])
        row = blank(name, "ok", "", backend, kernel, **figures)
        rows.append(replace(row, copies=rotation.copies, swept=rotation.sweeps))
    return rows


def _faults(
    judge: Judge, spec: OpSpec, running: dict[str, Contender], flat: Flat
) -> dict[str, tuple[str, str]]:
    """(status, reason) of each contender that raises or gives a wrong result."""
    found = {}
    for name, contender in running.items():
        try:
            with contender.context():
                wrong = judge.wrong(numerics.results(spec, contender.run, flat))
        except Exception as error:  # a kernel may raise anything; its row says what
            found[name] = ("fails", f"{type(error).__name__}: {error}")
            continue
        if wrong is not None:
            found[name] = ("wrong", wrong)
    return found


def _figures(cost: Cost, own: Times, plain: Times, top: Ceilings, dtype: str) -> dict[str, Any]:
    least, bound = top.least_time(cost, dtype)
    median = own.median
    return {
        "bytes_read": cost.bytes_read,
        "bytes_written": cost.bytes_written,
        "flops": cost.flops,
        "seconds": own.seconds,
        "plain_seconds": plain.seconds,
        "median": median,
        "iqr": own.iqr,
        "plain_median": plain.median,
        "bytes_per_second": cost.bytes / median,
        "flops_per_second": cost.flops / median,
        "fraction": least / median,
        "bound": bound,
        "launch": own.launch,
        "plain_launch": plain.launch,
    }


def measure(settings: Settings, top: Ceilings, timer: Timer) -> Iterator[Row]:
    """The rows of all cases, each as soon as it is measured."""
    for case in select(
        settings.ops, settings.dtypes, settings.quick, settings.families, settings.device
    ):
        asked = asked_backends(case.spec, settings.backends, settings.device)
        yield from measure_case(case, asked, top, settings, 0, timer=timer)


class Host:
    """This machine's CPU as what a run is on; `gpu.target.GpuTarget` is the other one."""

    def __init__(self) -> None:
        self._facts = machine.facts()
        self.timer: Timer = WallClock(self._facts.cache_bytes)

    def ceilings(self, quick: bool) -> Ceilings:
        return ceilings.measure(self._facts.cache_bytes, quick)

    def facts(self) -> Machine:
        return self._facts

    def look(self, here: Machine, top: Ceilings) -> Machine:
        """`here` with its state before the cases, or after them: a CPU's is not told."""
        return here


def target(device: str) -> Host | GpuTarget:
    """What a run on `device` measures and asks."""
    return GpuTarget() if device == "cuda" else Host()


def run(settings: Settings, json_file: str | None = None) -> int:
    """Measure, print, and write the result file. Exit status 1 if a kernel was wrong or raised; 130
    if Ctrl-C or SIGTERM ended the run, whose rows so far are written all the same."""
    kept = machine.keep_freed_memory()
    on = target(settings.device)
    here = on.facts()
    print(f"machine   {here.line()}")
    top = on.ceilings(settings.quick)
    here = on.look(here, top)
    for line in about_gpu(here):
        print(line)
    print(f"ceilings  {top.line()}")
    print(f"method    {method(settings, kept)}\n", flush=True)
    table = report.Table(report.OPS if here.gpu is None else report.OPS_ON_GPU)
    rows: list[Row] = []
    with until_interrupted() as ended:
        for row in measure(settings, top, on.timer):
            rows.append(row)
            print(table.row(report.cells(row)), flush=True)
    if ended:
        print(f"\n{ended[0]} after {len(rows)} rows")
    end = on.ceilings(settings.quick)
    drift = max(abs(end.read / top.read - 1), abs(end.copy / top.copy - 1))
    print(f"\nceilings at the end: {end.line()} (bandwidth moved by {drift:.0%})")
    here = on.look(here, end)
    for line in about_gpu(here):
        print(line)
    document = {
        "schema": "flashvl-bench/ops",
        "version": schema.VERSION,
        "machine": asdict(here),
        "settings": {**asdict(settings), "allocator_keeps_memory": kept},
        "ceilings": asdict(top),
        "ceilings_end": asdict(end),
        "rows": [asdict(row) for row in rows],
    }
    if json_file:
        schema.write(document, json_file)
    bad = [row for row in rows if row.status in ("wrong", "fails")]
    return 130 if ended else 1 if bad else 0


@contextmanager
def until_interrupted() -> Iterator[list[str]]:
    """A block that Ctrl-C or SIGTERM, which time limits send, ends early; the list then says so."""
    ended: list[str] = []

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt("SIGTERM")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield ended
    except KeyboardInterrupt as interrupt:
        ended.append(str(interrupt) or "Ctrl-C")
    finally:
        signal.signal(signal.SIGTERM, before)


def about_gpu(here: Machine) -> Iterator[str]:
    """The GPU and its state, before the cases; after them its state, and what makes them doubtful.
    Nothing of a run on the CPU."""
    gpu = here.gpu
    if gpu is None:
        return
    if gpu.after is None:
        yield f"GPU       {gpu.line()}"
    state = gpu.after or gpu.before
    if state is not None:
        yield f"clocks    {state.line()}"
    if gpu.after is not None:
        yield from (f"WARNING   {doubt}" for doubt in doubts(gpu))


def method(settings: Settings, allocator_keeps_memory: bool) -> str:
    """The choices behind the numbers, in words."""
    if settings.device == "cuda":
        return GPU_WARM if settings.warm else GPU_COLD
    cache = (
        "warm cache: every call gets the same arguments"
        if settings.warm
        else "cold cache: arguments rotate over twice the last-level cache, or the cache is swept"
    )
    pages = "keeps" if allocator_keeps_memory else "may return"
    return (
        f"{cache}; backends and the plain PyTorch expression take turns; median and distance of "
        f"the quartiles of n calls, Python and dispatch included; malloc {pages} freed memory; "
        f"gradients off; {torch.get_num_threads()} threads"
    )
