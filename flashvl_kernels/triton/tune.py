"""`flashvl-kernels tune`: times launch choices on the GPU at hand and writes the table (tuned.py).

Each op runs on its `bench` samples. For every choice that such a call makes, the neighbours of the
model's are tried, one choice after the other, with the best of the earlier ones in place. A
neighbour that does not compile, does not fit or spills is dropped before it is timed, and so is one
whose results differ from the model's by more than rounding. One that is faster by less than
LEAST_GAIN is noise, and the model's choice stays.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from flashvl_kernels import gpu, numerics
from flashvl_kernels import triton as backend
from flashvl_kernels.gpu import Device, ceil_div
from flashvl_kernels.spec import REGISTRY, OpSpec, capture
from flashvl_kernels.triton import dispatch, tuned
from flashvl_kernels.triton.flash import Block
from flashvl_kernels.triton.launch import Tile
from flashvl_kernels.triton.product import Blocks

LEAST_GAIN = 0.03
"""do_bench's median moves by a percent or two between runs of one kernel."""
REGISTERS = 65536
"""32-bit registers of a multiprocessor of every GPU since Volta."""

Timer = Callable[[Callable[[], Any]], float]
"""Milliseconds of a function; that of `triton.testing.do_bench`."""


def neighbours(default: Any, device: Device) -> list[Any]:
    """The space: what else a launch may be, near the model's choice."""
    kinds: dict[type, Callable[[Any, Device], Iterator[Any]]] = {
        Tile: tiles, Blocks: products, Block: attentions,
    }  # fmt: skip
    found = dict.fromkeys(kinds[type(default)](default, device))
    found.pop(default, None)
    return list(found)


def tiles(default: Tile, device: Device) -> Iterator[Tile]:
    """Half, double and four times the rows of a tile: loads under way against programs. Half and
    double the warps: registers a thread. Columns stay: a reduction needs the whole row."""
    for rows in (default.rows // 2, default.rows, 2 * default.rows, 4 * default.rows):
        for warps in (default.warps // 2, default.warps, 2 * default.warps):
            held = rows * default.columns / (max(warps, 1) * device.warp)
            if rows and warps and warps * device.warp <= 1024 and held <= 64:
                yield Tile(rows, default.columns, warps)


def products(default: Blocks, device: Device) -> Iterator[Blocks]:
    """Tiles of half and double the rows and units: operands read again against programs. Stages:
    loads under way against programs beside each other. Warps: registers a thread. Parts: half and
    double, where the sum over columns is split. Steps stay: fp32's are its chains of sums, int4's
    lie inside a group."""
    sizes = [(default.rows, default.units)]
    if default.step >= 64:  # fp32 keeps 64 x 64: its operands are in registers
        sizes += [(2 * default.rows, default.units), (default.rows, 2 * default.units)]
        sizes += [(default.rows // 2, default.units), (default.rows, default.units // 2)]
    steps = default.splits * default.part // default.step
    for rows, units in sizes:
        if not (16 <= rows <= 256 and 16 <= units <= 256):
            continue
        for stages in (2, 3, 4):
            for warps in (4, 8):
                yield replace(default, rows=rows, units=units, stages=stages, warps=warps)
    for splits in (default.splits // 2, 2 * default.splits):
        if default.splits > 1 and 1 <= splits <= steps:
            part = ceil_div(steps, splits) * default.step
            yield replace(default, splits=ceil_div(steps * default.step, part), part=part)


def attentions(default: Block, device: Device) -> Iterator[Block]:
    """Half and double the rows: keys read again against registers. Half and double the keys of a
    step: loads under way against scores in registers. Stages and warps as for products."""
    for rows in (default.rows // 2, default.rows, 2 * default.rows):
        for keys in (default.keys // 2, default.keys, 2 * default.keys):
            for warps in (4, 8):
                for stages in (2, 3):
                    if 16 <= rows <= 128 and 16 <= keys <= 128:
                        yield Block(rows, keys, warps, stages)


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


@dataclass(frozen=True)
class Trial:
    """A choice tried on one call: milliseconds, or why there are none."""

    key: str
    choice: Any
    milliseconds: float | None
    reason: str = ""


def tune_call(spec: OpSpec, flat: tuple[Any, ...], timer: Timer) -> tuple[dict[str, Any], Any]:
    """The choices of one call that are faster than the models', by key, and every trial."""
    run = backend.module(spec.name).run
    trials: list[Trial] = []
    with tuned.tuning() as session, torch.no_grad():
        expected = numerics.results(spec, run, flat)
        asked = dict(session.asked)
        best = timer(lambda: run(*flat))
        for key, (default, device) in asked.items():
            kept = None
            for choice in neighbours(default, device):
                session.forced[key] = choice
                trial = _try(spec, flat, key, choice, device, expected, timer)
                trials.append(trial)
                if trial.milliseconds is not None and trial.milliseconds < best * (1 - LEAST_GAIN):
                    best, kept = trial.milliseconds, choice
            session.forced.pop(key)
            if kept is not None:
                session.forced[key] = kept
        return dict(session.forced), trials


def _try(
    spec: OpSpec,
    flat: tuple[Any, ...],
    key: str,
    choice: Any,
    device: Device,
    expected: list[torch.Tensor],
    timer: Timer,
) -> Trial:
    run = backend.module(spec.name).run
    dispatch.forget()
    try:
        got = numerics.results(spec, run, flat)
    except Exception as error:  # whatever the compiler or the driver raises: out of resources
        return Trial(key, choice, None, f"{type(error).__name__}: {error}")
    for compiled in dispatch.compiled():
        reason = pruned(resources(compiled), device)
        if reason is not None:
            return Trial(key, choice, None, reason)
    if not all(map(_equal, got, expected)):
        return Trial(key, choice, None, "gives another result")
    return Trial(key, choice, timer(lambda: run(*flat)))


def _equal(mine: torch.Tensor, models: torch.Tensor) -> bool:
    """But for the rounding of sums in another order."""
    if not mine.is_floating_point():
        return torch.equal(mine, models)
    eps = torch.finfo(mine.dtype).eps
    scale = float(models[models.isfinite()].abs().max()) if models.isfinite().any() else 0.0
    return torch.allclose(mine, models, rtol=8 * eps, atol=8 * eps * scale, equal_nan=True)


def tune(
    specs: Sequence[OpSpec], dtypes: Sequence[torch.dtype], device: str, timer: Timer
) -> dict[str, tuned.Numbers]:
    """The choices of all bench samples that beat their models: what goes into the table."""
    chosen: dict[str, tuned.Numbers] = {}
    for spec in specs:
        for sample in spec.samples:
            if sample.kind != "bench":
                continue
            for dtype in dtypes:
                built = sample.build(dtype, device)
                flat = capture(spec.function, *built.args, **built.kwargs)[1]
                if backend.module(spec.name).why_not(*flat) is not None:
                    continue
                faster, trials = tune_call(spec, flat, timer)
                chosen |= {key: asdict(choice) for key, choice in faster.items()}
                dropped = sum(trial.milliseconds is None for trial in trials)
                print(
                    f"{spec.name}, {sample.name}, {str(dtype)[6:]}: {len(trials)} tried, "
                    f"{dropped} dropped, {len(faster)} faster than the model"
                )
    return chosen


def main(ops: Sequence[str], dtypes: Sequence[str]) -> int:
    """The command line, on a machine with a GPU; returns the exit status."""
    known = [name for name, spec in REGISTRY.items() if "triton" in spec.kernels]
    for op in ops:
        if op not in known:
            print(f"tune: op is {op!r}; needs one of {', '.join(known)}", file=sys.stderr)
            return 1
    from triton.testing import do_bench

    name = gpu.describe(torch.device("cuda", torch.cuda.current_device())).name
    before = {} if tuned.why_not(name) else dict(tuned.table(name))
    specs = [REGISTRY[op] for op in ops or known]
    wanted = [getattr(torch, dtype) for dtype in dtypes]
    found = tune(specs, wanted, "cuda", lambda run: float(do_bench(run, return_mode="median")))
    print(f"{len(found)} choices in {tuned.save(name, before | found)}")
    return 0
