"""`flashvl-bench profile`: where the time of one generated answer goes, op by op.

An image and a question in, an answer out, by `flashvl.generate`: on the tiny checkpoint unless
told otherwise. The answer shown is a real one, that of median time among several recorded, so its
rows add up; beside it stands what the same answer takes unobserved, with and without a tape.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from flashvl import FlashVL, FlashVLConfig, checkpoint, demo
from flashvl.generate import generate
from flashvl.tokenizer import Tokenizer
from flashvl_bench import (
    ceilings,
    machine,
    report,
    schema,
)
from flashvl_bench.ceilings import DTYPES
from flashvl_bench.profile import flame as profile_flame
from flashvl_bench.profile import ncu as profile_ncu
from flashvl_bench.profile import rows as profile_rows
from flashvl_bench.profile import trace as profile_trace
from flashvl_bench.profile.cli import CONFIGS
from flashvl_bench.profile.record import ROOT, Recorder, watch
from flashvl_bench.profile.rows import Row
from flashvl_kernels import backend, tape
from flashvl_kernels.spec import REGISTRY


@dataclass(frozen=True)
class Settings:
    """What is asked, of which model. config: a name of `CONFIGS`, all but tiny with random weights
    and tiny's tokenizer, or a folder in the released layout. image, question: empty for the demo's
    first. layers: depth to cut encoder and decoder to."""

    config: str = "tiny"
    image: str = ""
    question: str = ""
    tokens: int = 32
    dtype: str = "fp32"
    weights: str = "bf16"
    backend: str = "auto"
    device: str = "cpu"
    repeats: int = 7
    layers: int | None = None
    nvtx: bool = False


@dataclass(frozen=True)
class Walls:
    """Seconds of the same answer. recorded: the one the rows are of; op_by_op: unobserved, without
    a tape; usual: unobserved, as `generate` runs it (the medians of the last two)."""

    recorded: float
    op_by_op: float
    usual: float


def build(settings: Settings) -> FlashVL:
    """The model to ask. Raises CheckpointError for a folder that holds none."""
    dtype, layers = DTYPES[settings.dtype], settings.layers
    if settings.config == "tiny" or settings.config not in CONFIGS:
        return FlashVL.from_pretrained(settings.config, settings.device, dtype, settings.weights)
    config: FlashVLConfig = getattr(FlashVLConfig, settings.config)()
    if layers is not None:
        config = replace(
            config,
            vision=replace(config.vision, layers=min(layers, config.vision.layers)),
            decoder=replace(config.decoder, layers=min(layers, config.decoder.layers)),
        )
    model = FlashVL.random(config, 0, settings.device, dtype, settings.weights)
    model.tokenizer = Tokenizer.from_pretrained(checkpoint.find("tiny"))
    return model


def question(settings: Settings) -> tuple[str, str]:
    """Image and question: those asked for, or the demo's first."""
    first = demo.load_questions()[0]
    return settings.image or str(first.image), settings.question or first.question


def measure(model: FlashVL, settings: Settings) -> tuple[Recorder, Walls]:
    """The recording of the answer of median time, and the times. The clock of `Walls` is read
    around the whole call, outside of the recorder."""
    image, text = question(settings)
    wait = torch.cuda.synchronize if settings.device.startswith("cuda") else None
    answer = partial(generate, model, image, text, settings.tokens, ignore_eos=True)

    def recorded() -> tuple[float, Recorder]:
        recorder = Recorder(wait=wait, ranges=settings.nvtx)
        with watch(recorder):
            return _seconds(partial(_as_root, recorder, answer), wait), recorder

    def unobserved(with_tape: bool) -> None:
        with nullcontext() if with_tape else tape.off():
            answer()

    usual, op_by_op, found = [], [], []
    for _ in range(settings.repeats + 1):  # in turns; the first round fills caches
        usual.append(_seconds(partial(unobserved, True), wait))
        op_by_op.append(_seconds(partial(unobserved, False), wait))
        found.append(recorded())
    found = sorted(found[1:], key=lambda pair: pair[0])
    wall, recorder = found[len(found) // 2]
    times = (statistics.median(each[1:]) for each in (op_by_op, usual))
    return recorder, Walls(wall, *times)


def _as_root(recorder: Recorder, answer: Callable[[], object]) -> None:
    with recorder.stage(ROOT):
        answer()


def _seconds(run: Callable[[], object], wait: Callable[[], object] | None) -> float:
    if wait is not None:
        wait()
    start = time.perf_counter()
    run()
    if wait is not None:
        wait()
    return time.perf_counter() - start


def title(settings: Settings) -> str:
    """The answer in words."""
    weights = "" if settings.config == "tiny" else f", weights {settings.weights}"
    depth = "" if settings.layers is None else f", depth cut to {settings.layers}"
    return (
        f"{settings.config}, {settings.dtype}{weights}{depth}: one image, {settings.tokens} "
        f"tokens, backend {settings.backend} on {settings.device}, "
        f"{torch.get_num_threads()} threads"
    )


def run(settings: Settings, folder: str | None = None, json_file: str | None = None) -> int:
    """Measure, print, and write the files: profile.json, trace.json, flame.svg and stacks.txt into
    `folder`. Exit status 2 where the model or the image cannot be used."""
    here = machine.facts()
    print(f"machine   {here.line()}")
    on_cpu = settings.device == "cpu"
    top = ceilings.measure(here.cache_bytes, quick=True) if on_cpu else None
    print(f"ceilings  {top.line() if top else 'not known for this device; see --ncu'}")
    print(f"answer    {title(settings)}", flush=True)
    try:
        with backend(settings.backend):
            recorder, walls = measure(build(settings), settings)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"flashvl-bench profile: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(f"method    {method(walls)}\n")
    rows = profile_rows.rows(recorder, top)
    for line in profile_rows.lines(rows, walls.recorded):
        print(line)
    end = ceilings.measure(here.cache_bytes, quick=True) if on_cpu else None
    print(f"ceilings at the end: {end.line()}" if end else "", flush=True)
    document = {
        "schema": "flashvl-bench/profile",
        "version": schema.VERSION,
        "machine": asdict(here),
        "settings": asdict(settings),
        "ceilings": asdict(top) if top else None,
        "ceilings_end": asdict(end) if end else None,
        "walls": asdict(walls),
        "rows": [asdict(row) for row in rows],
    }
    if json_file:
        schema.write(document, json_file)
    if folder:
        write(Path(folder), recorder, document, title(settings))
        print(f"written to {folder}: profile.json, trace.json (Perfetto), flame.svg, stacks.txt")
    return 0


def method(walls: Walls) -> str:
    """How the answer was recorded, and what that cost, in words."""
    recorded, op_by_op, usual = map(report.duration, asdict(walls).values())
    return (
        f"decode steps op by op, so that each call is seen; recorded {recorded}, unobserved "
        f"{op_by_op}, and {usual} as `generate` runs it, with decode steps from a tape where it can"
    )


def write(folder: Path, recorder: Recorder, document: dict[str, Any], words: str) -> None:
    """The four files of a profile."""
    folder.mkdir(parents=True, exist_ok=True)
    schema.write(document, folder / "profile.json")
    trace = profile_trace.trace(recorder, f"flashvl-bench profile: {words}")
    profile_trace.check(trace)
    (folder / "trace.json").write_text(json.dumps(trace), encoding="utf-8")
    ops = frozenset(span.name for span in recorder.spans if span.call is not None)
    svg = profile_flame.svg(profile_trace.stacks(recorder), ops, f"One answer: {words}")
    (folder / "flame.svg").write_text(svg, encoding="utf-8")
    (folder / "stacks.txt").write_text("\n".join(profile_trace.folded(recorder)) + "\n", "utf-8")


def print_ncu_commands() -> int:
    """A command line of Nsight Compute for each CUDA kernel."""
    for op, kernel, command in profile_ncu.commands(REGISTRY):
        print(f"# {op}: {kernel}\n{command}")
    return 0


def print_ncu(paths: tuple[str, ...]) -> int:
    """The rows of CSVs of Nsight Compute, in the columns of a profile. Exit status 2 for one that
    cannot be used."""
    rows: list[Row] = []
    try:
        for path in paths:
            rows += profile_ncu.read(path)
    except profile_ncu.NcuError as error:
        print(f"flashvl-bench profile: {error}", file=sys.stderr)
        return 2
    total = sum(row.seconds for row in rows)
    for line in profile_rows.lines(sorted(rows, key=lambda row: -row.seconds), total or 1.0):
        print(line)
    return 0
