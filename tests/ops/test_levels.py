"""Every op with a CPU kernel at every level, in every dtype, on every sample, against the oracle.

The level is read once a process, so each one runs in its own: this file, as a program. Level amx
runs on tiles in memory where the CPU lacks nothing else of it (tools/emulate_tiles.py). The plain
results and the float64 ones do not depend on the level; they are computed once and handed over on
disk. The worker says what it is about to run before it runs it, so that a crash has a name.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flashvl_kernels import extension, numerics
from flashvl_kernels.backends import why_not
from flashvl_kernels.spec import REGISTRY, OpSpec, Sample, capture

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
KINDS = ("typical", "edge", "strided", "zero")
LEVELS = ("scalar", "avx2", "avx512", "avx512_bf16", "amx")
ROOT = Path(__file__).resolve().parents[2]
SPECS = [spec for spec in REGISTRY.values() if "cpu" in spec.kernels]

pytestmark = pytest.mark.timeout(900)  # one of them compiles a level


def flat_call(spec: OpSpec, sample: Sample, dtype: torch.dtype, draw: int = 0) -> tuple[Any, ...]:
    built = sample.build(dtype, draw=draw)
    return capture(spec.function, *built.args, **built.kwargs)[1]


def calls(spec: OpSpec) -> Iterator[tuple[str, Sample, torch.dtype]]:
    """A name, and what to build, for each sample and dtype that the kernel takes."""
    for sample in spec.samples:
        if sample.kind not in KINDS:
            continue
        for dtype_name, dtype in DTYPES.items():
            if why_not(spec, "cpu", flat_call(spec, sample, dtype)) is None:
                yield f"{spec.name} [{sample.name}] {dtype_name}", sample, dtype


def beside(spec: OpSpec, flat: tuple[Any, ...]) -> tuple[list[Tensor], list[Tensor]]:
    """The plain results and the float64 ones."""
    return numerics.results(spec, spec.reference, flat), numerics.oracle(spec, flat)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one file an op: the plain and the float64 results of each call by name."""
    if not extension.EXTENSION.loaded:
        pytest.skip(extension.EXTENSION.reason)
    folder = tmp_path_factory.mktemp("expected")
    for spec in SPECS:
        found = {
            name: beside(spec, flat_call(spec, sample, dtype))
            for name, sample, dtype in calls(spec)
        }
        torch.save(found, folder / f"{spec.name}.pt")
    return folder


@pytest.fixture(scope="module")
def libraries() -> dict[str, str]:
    """By level, the library that runs it here."""
    levels = extension.available_levels()
    found = dict.fromkeys(levels, extension.EXTENSION.path)
    compiler = any(map(shutil.which, ("c++", "g++", "clang++")))
    if levels[-1:] == ["avx512_bf16"] and compiler:
        command = [sys.executable, str(ROOT / "tools" / "emulate_tiles.py"), "--build"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        found["amx"] = done.stdout.splitlines()[-1]
    return found


_REPORTS: dict[str, dict[str, Any]] = {}


def report(level: str, library: str, folder: Path) -> dict[str, Any]:
    """What the worker of `level` found: {"level", op: {"calls", "wrong"}}; run once."""
    if level not in _REPORTS:
        environment = {
            **os.environ,
            "FLASHVL_CPU_LEVEL": level,
            "FLASHVL_EXTENSION": library,
            "PYTHONPATH": str(ROOT),
        }
        command = [sys.executable, __file__, str(folder)]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=280
        )
        lines = done.stdout.splitlines()
        if done.returncode:
            last = lines[-1] if lines else "the first call"
            _REPORTS[level] = {
                "crash": f"status {done.returncode} in {last}: {done.stderr[-2000:]}"
            }
        else:
            _REPORTS[level] = json.loads(lines[-1])
    return _REPORTS[level]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
@pytest.mark.parametrize("level", LEVELS)
def test_every_call_is_right_at_every_level(
    level: str, spec: OpSpec, expected: Path, libraries: dict[str, str]
) -> None:
    if level not in libraries:
        pytest.skip(f"level {level} is not available here: {list(libraries)}")
    found = report(level, libraries[level], expected)
    assert "crash" not in found, found["crash"]
    assert found["level"] == level
    assert found[spec.name]["calls"] > 0
    assert not found[spec.name]["wrong"], "\n".join(found[spec.name]["wrong"])


def compared(
    spec: OpSpec,
    sample: Sample,
    dtype: torch.dtype,
    first: tuple[list[Tensor], list[Tensor]],
    draw: int,
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """The kernel's results, the plain and the float64 ones; of draw 0 the last two are known."""
    flat = flat_call(spec, sample, dtype, draw)
    got = numerics.results(spec, spec.kernel("cpu").run, flat)
    plain, truth = beside(spec, flat) if draw else first
    return got, plain, truth


def work(folder: Path) -> dict[str, Any]:
    """Run and judge every call in this process, at its level."""
    found: dict[str, Any] = {"level": extension.cpu_level()}
    for spec in SPECS:
        known = torch.load(folder / f"{spec.name}.pt")
        wrong: list[str] = []
        count = 0
        for name, sample, dtype in calls(spec):
            print(name, flush=True)
            judged = partial(compared, spec, sample, dtype, known[name])
            if reason := numerics.refusal_over_draws(
                spec, judged, partial(flat_call, spec, sample, dtype)
            ):
                wrong.append(f"{name}, {reason}")
            count += 1
        found[spec.name] = {"calls": count, "wrong": wrong}
    return found


if __name__ == "__main__":
    print(json.dumps(work(Path(sys.argv[1]))))
