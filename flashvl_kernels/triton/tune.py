"""`flashvl-kernels tune`: times launch choices on the GPU at hand and writes the table (tuned.py).

Each op runs on its `bench` samples. For every choice that such a call makes, the candidates of
space.py are tried, one choice after the other, with the best of the earlier ones in place. All of
them are compiled first, in processes beside each other (ahead.py). One that does not compile, does
not fit or spills is dropped before it is timed, and so is one whose results differ from the model's
by more than rounding. One that is faster by less than LEAST_GAIN is noise, and the model's choice
stays.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from flashvl_kernels import gpu, numerics
from flashvl_kernels import triton as backend
from flashvl_kernels.gpu import Device
from flashvl_kernels.spec import REGISTRY, Maker, OpSpec, Sample, capture
from flashvl_kernels.triton import ahead, dispatch, tuned
from flashvl_kernels.triton.graph_timer import GraphTimer
from flashvl_kernels.triton.launch import Tile
from flashvl_kernels.triton.space import neighbours

LEAST_GAIN = 0.03
"""The median moves by a percent or two between runs of one kernel."""
FINALISTS = 3
"""Candidates that are timed again: the least of many medians is a lucky one."""
REGISTERS = 65536
"""32-bit registers of a multiprocessor of every GPU since Volta."""
FIRST = (
    "gelu_mlp", "linear", "swiglu_mlp", "tile_attention", "stitched_tile_attention",
    "causal_attention", "argmax_head", "decode_attention",
)  # fmt: skip
"""Ops in the order of what a choice can gain: the rest read memory once, whatever the choice."""
COMPILING = 0.45
"""The share of a limited time after which compiling stops, so that what is compiled is timed."""

Timer = Callable[[Callable[[], Any]], float]
"""Milliseconds of a function."""


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel takes. spills: bytes of local memory a thread, or None if unknown."""

    shared: int
    warps: int
    registers: int | None
    spills: int | None


def pruned(found: Resources, device: Device) -> str | None:
    """Why a kernel is not worth timing; None where it is."""
    if found.shared > device.shared_bytes_per_block:
        return f"needs {found.shared} bytes of shared memory, has {device.shared_bytes_per_block}"
    if found.spills:
        return f"spills {found.spills} bytes a thread"
    threads = found.warps * device.warp
    if not device.amd and found.registers and found.registers * threads > REGISTERS:
        return f"needs {found.registers * threads} registers, has {REGISTERS}"
    return None


def resources(compiled: Any) -> Resources:
    """Of Triton's CompiledKernel, once it is loaded."""
    data = compiled.metadata
    registers, spills = getattr(compiled, "n_regs", None), getattr(compiled, "n_spills", None)
    return Resources(data.shared, data.num_warps, registers, spills)


# ---- one call ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trial:
    """A choice tried on one call: milliseconds, or why there are none."""

    choice: Any
    milliseconds: float | None
    reason: str = ""


@dataclass(frozen=True)
class Outcome:
    """A choice of one call: the model's and the fastest, with milliseconds of the whole call."""

    key: str
    default: Any
    default_ms: float
    best: Any
    best_ms: float
    trials: list[Trial]

    @property
    def gain(self) -> float:
        return self.default_ms / self.best_ms

    def numbers(self) -> dict[str, Any]:
        """As JSON has it, every trial included."""
        trials = [
            {"choice": asdict(t.choice), "ms": t.milliseconds, "reason": t.reason}
            for t in self.trials
        ]
        fields = {"key": self.key, "default": asdict(self.default), "best": asdict(self.best)}
        return fields | {"default_ms": self.default_ms, "best_ms": self.best_ms, "trials": trials}


Space = Mapping[str, Sequence[Any]]
"""Choices to try, by key."""


def tune_call(
    spec: OpSpec,
    flat: tuple[Any, ...],
    timer: Timer,
    space: Space | None = None,
    until: float = math.inf,
) -> list[Outcome]:
    """Every choice of one call, tried until `until` of `time.monotonic`. space: what to try; by
    default all neighbours."""
    run = backend.module(spec.name).run
    outcomes: list[Outcome] = []
    with tuned.tuning() as session, torch.no_grad():
        expected = numerics.results(spec, run, flat)
        for key, (default, device, numbers) in in_order(session.asked):
            choices = neighbours(default, device, *numbers) if space is None else space.get(key, ())
            if not choices or time.monotonic() > until:
                continue
            model_ms = timer(lambda: run(*flat))
            trials = []
            for choice in choices:
                if time.monotonic() > until:
                    break
                session.forced[key] = choice
                trials.append(_try(spec, flat, choice, device, expected, timer))
            timed = [(t.milliseconds, t.choice) for t in trials if t.milliseconds is not None]
            times: list[tuple[float, Any]] = []
            for first, choice in sorted(timed, key=lambda each: each[0])[:FINALISTS]:
                session.forced[key] = choice
                times.append((median((first, *(timer(lambda: run(*flat)) for _ in "ab"))), choice))
            session.forced.pop(key)
            if times:
                model_ms = median((model_ms, *(timer(lambda: run(*flat)) for _ in "ab")))
            best_ms, best = min(times, key=lambda each: each[0], default=(model_ms, default))
            if best_ms >= model_ms * (1 - LEAST_GAIN):
                best_ms, best = model_ms, default
            else:
                session.forced[key] = best
            outcomes.append(Outcome(key, default, model_ms, best, best_ms, trials))
    return outcomes


def in_order(asked: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The choices of a call, those of its products and attention first."""
    return sorted(asked.items(), key=lambda item: isinstance(item[1][0], Tile))


def _try(
    spec: OpSpec,
    flat: tuple[Any, ...],
    choice: Any,
    device: Device,
    expected: list[Tensor],
    timer: Timer,
) -> Trial:
    run = backend.module(spec.name).run
    dispatch.forget()
    try:
        got = numerics.results(spec, run, flat)
    except Exception as error:  # whatever the compiler or the driver raises: out of resources
        return Trial(choice, None, f"{type(error).__name__}: {error}"[:200])
    for compiled in dispatch.compiled():
        reason = pruned(resources(compiled), device)
        if reason is not None:
            return Trial(choice, None, reason)
    if not all(map(_equal, got, expected)):
        return Trial(choice, None, "gives another result")
    return Trial(choice, timer(lambda: run(*flat)))


def _equal(mine: Tensor, models: Tensor) -> bool:
    """But for the rounding of sums in another order."""
    if not mine.is_floating_point():
        return torch.equal(mine, models)
    eps = torch.finfo(mine.dtype).eps
    scale = float(models[models.isfinite()].abs().max()) if models.isfinite().any() else 0.0
    return torch.allclose(mine, models, rtol=8 * eps, atol=8 * eps * scale, equal_nan=True)


# ---- all calls ---------------------------------------------------------------------------------


class Drawn(Maker):
    """Draws on the device itself: a vocabulary's matrix takes seconds on the host. On "meta" a
    tensor has a shape and no memory, which is enough to record what a call launches."""

    def normal(
        self, *shape: int, scale: float = 1.0, mean: float = 0.0, dtype: torch.dtype | None = None
    ) -> Tensor:
        values = torch.randn(shape, device=self.device) * scale + mean
        return values.to(dtype or self.dtype)

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, device=self.device)


@dataclass(frozen=True)
class Call:
    """A bench sample in a dtype."""

    spec: OpSpec
    sample: Sample
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{self.spec.name}, {self.sample.name}, {str(self.dtype)[6:]}"

    def flat(self, device: str) -> tuple[Any, ...]:
        """The arguments of the op, on `device`."""
        built = self.sample.make(Drawn(self.dtype, device))
        args, kwargs = tree_map_only(Tensor, lambda t: t.to(device), (built.args, built.kwargs))
        return capture(self.spec.function, *args, **kwargs)[1]


def calls(specs: Sequence[OpSpec], dtypes: Sequence[torch.dtype]) -> Iterator[Call]:
    """What the kernels support of it, ops with the most to gain first."""
    ranks = {name: rank for rank, name in enumerate(FIRST)}
    for spec in sorted(specs, key=lambda spec: ranks.get(spec.name, len(FIRST))):
        for sample in spec.samples:
            for dtype in dtypes if sample.kind == "bench" else ():
                call = Call(spec, sample, dtype)
                if backend.module(spec.name).why_not(*call.flat("meta")) is None:
                    yield call


@dataclass
class Plan:
    """A call, and by key each choice to try with the kernels it launches."""

    call: Call
    space: dict[str, list[tuple[Any, tuple[ahead.Kernel, ...]]]]

    def compiled(self, reasons: Mapping[ahead.Kernel, str]) -> Space:
        """The choices whose kernels are all there."""
        return {
            key: [choice for choice, kernels in tried if all(reasons.get(k) == "" for k in kernels)]
            for key, tried in self.space.items()
        }


def plan(call: Call, device: Device, seen: set[str]) -> Plan:
    """What to try for the choices of a call that no call before it made: their keys are `seen`."""
    run, flat = backend.module(call.spec.name).run, call.flat("meta")
    space: dict[str, list[tuple[Any, tuple[ahead.Kernel, ...]]]] = {}
    with ahead.recording(device) as launched, tuned.tuning() as session, torch.no_grad():
        run(*flat)
        for key, (default, _, numbers) in in_order(dict(session.asked)):
            if key in seen:
                continue
            seen.add(key)
            space[key] = []
            for choice in (default, *neighbours(default, device, *numbers)):
                launched.clear()
                session.forced[key] = choice
                run(*flat)
                space[key].append((choice, tuple(launched)))
            session.forced.pop(key)
    return Plan(call, space)


def tune(
    plans: Sequence[Plan],
    reasons: Mapping[ahead.Kernel, str],
    timer: Timer,
    until: float,
    found: Callable[[Call, list[Outcome]], None],
) -> None:
    """Time what is compiled; `found` hears of every call as soon as it is done."""
    for each in plans:
        space = {
            key: [choice for choice in choices if choice != each.space[key][0][0]]
            for key, choices in each.compiled(reasons).items()
        }
        if not any(space.values()):
            continue
        if time.monotonic() > until:
            print(f"no time is left for {each.call}", flush=True)
            continue
        try:
            found(each.call, tune_call(each.call.spec, each.call.flat("cuda"), timer, space, until))
        except Exception as error:  # of one call, e.g. no memory for it: the others go on
            print(f"{each.call}: {type(error).__name__}: {error}", flush=True)


# ---- the command -------------------------------------------------------------------------------


class Report:
    """Prints outcomes, and keeps the table and the file of all times up to date."""

    def __init__(self, gpu_name: str, out: Path | None) -> None:
        self.gpu, self.out = gpu_name, out
        self.before = {} if tuned.why_not(gpu_name) else dict(tuned.table(gpu_name))
        self.outcomes: list[tuple[Call, Outcome]] = []

    def choices(self) -> dict[str, tuned.Numbers]:
        return {o.key: asdict(o.best) for _, o in self.outcomes if o.best != o.default}

    def add(self, call: Call, outcomes: list[Outcome]) -> None:
        for each in outcomes:
            self.outcomes.append((call, each))
            dropped = sum(trial.milliseconds is None for trial in each.trials)
            tried = f"{len(each.trials)} tried, {dropped} dropped"
            print(f"{_line(call, each)} ({tried})", flush=True)
        self.save()

    def save(self) -> Path:
        if self.out is not None:
            measured = [{"call": str(c)} | outcome.numbers() for c, outcome in self.outcomes]
            content = {"gpu": self.gpu, "triton": backend.version(), "choices": self.choices()}
            self.out.write_text(json.dumps(content | {"measured": measured}, indent=1))
        return tuned.save(self.gpu, self.before | self.choices())

    def summary(self) -> None:
        """All outcomes, the largest gain first, each with the fastest of what was tried."""
        print("\nby gain; the call's time with the model's choice and with the best")
        for call, each in sorted(self.outcomes, key=lambda item: -item[1].gain):
            print(_line(call, each))
            if each.best != each.default:
                print(f"    model   {each.default}\n    best    {each.best}")
            timed = [t for t in each.trials if t.milliseconds is not None]
            for trial in sorted(timed, key=lambda t: t.milliseconds or 0.0)[:5]:
                print(f"    {1000 * (trial.milliseconds or 0.0):7.1f} {trial.choice}")


def _line(call: Call, each: Outcome) -> str:
    times = f"{1000 * each.default_ms:7.1f} -> {1000 * each.best_ms:7.1f} us"
    return f"{each.gain:5.2f}x {times}  {call}: {each.key}"


def main(
    ops: Sequence[str],
    dtypes: Sequence[str],
    jobs: int | None = None,
    seconds: float | None = None,
    out: str | None = None,
) -> int:
    """The command line, on a machine with a GPU; returns the exit status."""
    known = [name for name, spec in REGISTRY.items() if "triton" in spec.kernels]
    for op in ops:
        if op not in known:
            print(f"tune: op is {op!r}; needs one of {', '.join(known)}", file=sys.stderr)
            return 1
    from triton.runtime import driver

    begin = time.monotonic()
    device = gpu.describe(torch.device("cuda", torch.cuda.current_device()))
    report = Report(device.name, Path(out) if out else None)
    seen: set[str] = set()
    wanted = calls([REGISTRY[op] for op in ops or known], [getattr(torch, d) for d in dtypes])
    plans = [plan(call, device, seen) for call in wanted]
    kernels = dict.fromkeys(
        kernel
        for each in plans
        for tried in each.space.values()
        for _, ks in tried
        for kernel in ks
    )
    print(f"{device.name}: {len(seen)} choices of {len(plans)} calls, {len(kernels)} kernels")
    now = driver.active.get_current_target()
    limit = math.inf if seconds is None else seconds
    reasons = ahead.compile_all(
        kernels, (now.backend, now.arch, now.warp_size), jobs or os.cpu_count() or 1,
        begin + COMPILING * limit,
    )  # fmt: skip
    refused = sum(bool(reason) for reason in reasons.values())
    print(
        f"{time.monotonic() - begin:.0f} s: {len(reasons)} kernels compiled, {refused} refused, "
        f"{len(kernels) - len(reasons)} not reached",
        flush=True,
    )
    tune(plans, reasons, GraphTimer(), begin + limit, report.add)
    report.summary()
    print(f"{len(report.choices())} choices in {report.save()}, {time.monotonic() - begin:.0f} s")
    return 0
