"""The kernels again, under AddressSanitizer and UBSan: what the checker itself might get wrong.

The checker refuses stray accesses before they happen; the sanitizers watch its own code, the
registers of the kernels (their arrays), and integer arithmetic. In processes of their own, because
the runtime must be loaded first; each has a few ops, for PyTorch takes its time to load under it.
Three quarters of the samples and dtypes run, those that take the least; FLASHVL_SLOW_TESTS=1 runs
all, and those of no elements and of far offsets.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flashvl_kernels import simt
from flashvl_kernels.spec import REGISTRY, OpSpec
from tests.simt.test_ops import FLOPS_LIMIT, SPECS, flat_call, refused
from tests.slow import SLOW

ROOT = Path(__file__).resolve().parents[2]


KINDS = ("typical", "edge", "strided")
WORK = 4e6
"""Of an op: bytes and FLOPs of its samples together, and PER_SAMPLE for each."""
PER_SAMPLE = 5e4
OPS = [spec.name for spec in SPECS]
TOGETHER = [OPS[first::5] for first in range(5)]
"""Which ops share a process."""


def executed(spec: OpSpec) -> dict[str, tuple[float, str]]:
    """What test_ops.py executes of an op: its id there, what it takes, and of which kind it is."""
    found = {}
    for sample in spec.samples:
        for name, dtype in simt.DTYPES.items():
            if sample.kind not in KINDS and not (SLOW and sample.kind in ("zero", "far")):
                continue
            flat = flat_call(spec, sample, dtype)
            cost = spec.cost(*flat)
            if refused(spec, flat) is None and cost.flops <= FLOPS_LIMIT:
                place = f"{spec.name}-{sample.name.replace(' ', '_')}-{name}"
                found[place] = cost.bytes + cost.flops, f"{sample.kind} {name}"
    return found


def chosen(spec: OpSpec) -> list[str]:
    """All of them on request; else the smallest of each kind and dtype, then as many of the
    smallest as WORK allows."""
    all_of_them = executed(spec)
    if SLOW:
        return list(all_of_them)
    by_size = sorted(all_of_them, key=lambda place: all_of_them[place][0])
    kinds = {kind for _, kind in all_of_them.values()}
    first = [next(p for p in by_size if all_of_them[p][1] == kind) for kind in sorted(kinds)]
    order, work = dict.fromkeys([*first, *by_size]), 0.0
    taken = []
    for place in order:
        work += all_of_them[place][0] + PER_SAMPLE
        if place in first or work <= WORK:
            taken.append(place)
    return taken


def runtime(name: str) -> str:
    done = subprocess.run(
        [os.environ.get("CXX", "g++"), f"-print-file-name={name}"],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.mark.skipif(simt.unavailable() is not None, reason=str(simt.unavailable()))
@pytest.mark.skipif(simt.sanitized(), reason="is what this test runs")
@pytest.mark.timeout(7200 if SLOW else 600)
@pytest.mark.parametrize("ops", TOGETHER, ids=", ".join)
def test_kernels_under_the_sanitizers(ops: list[str]) -> None:
    libraries = [runtime("libasan.so"), runtime("libubsan.so")]
    if not all(Path(library).is_absolute() for library in libraries):
        pytest.skip("this compiler has no AddressSanitizer runtime")
    test = "tests/simt/test_ops.py::test_against_the_float64_oracle"
    ids = [name for op in ops for name in chosen(REGISTRY[op])]
    command = [
        sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", "-o", "timeout=0",
        *(f"{test}[{name}]" for name in ids),
    ]  # fmt: skip
    environment = {
        **os.environ,
        "FLASHVL_SIMT_SANITIZE": "1",
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0",  # CPython keeps what it has
        "UBSAN_OPTIONS": "halt_on_error=1",
    }
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert f"{len(ids)} passed" in done.stdout and "runtime error" not in done.stdout + done.stderr
