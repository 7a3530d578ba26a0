"""The kernels again, under AddressSanitizer and UBSan: what the checker itself might get wrong.

The checker refuses stray accesses before they happen; the sanitizers watch its own code, the
registers of the kernels (their arrays), and integer arithmetic. In a process of its own, because
the runtime must be loaded first.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flashvl_kernels import simt
from flashvl_kernels.spec import REGISTRY, OpSpec, capture
from tests.simt.test_ops import SPECS

ROOT = Path(__file__).resolve().parents[2]


KINDS = ("typical", "edge", "strided")
SAMPLES = 6
"""Of an op, the smallest: the sanitizers see every line, which larger samples only repeat."""


def smallest(spec: OpSpec) -> list[str]:
    """The ids in test_ops.py of the samples that touch the fewest bytes: one of each kind in bf16
    and fp32, whose kernels may be others, and some more in bf16."""
    sizes = {}
    for sample in spec.samples:
        if sample.kind in KINDS:
            built = sample.build(torch.bfloat16)
            _, flat = capture(spec.function, *built.args, **built.kwargs)
            sizes[sample] = spec.cost(*flat).bytes
    by_size = sorted(sizes, key=sizes.__getitem__)
    of_kinds = [next((s for s in by_size if s.kind == kind), None) for kind in KINDS]
    first = [sample for sample in of_kinds if sample is not None]
    chosen = [(s, "bf16") for s in dict.fromkeys([*first, *by_size[:SAMPLES]])][:SAMPLES]
    chosen += [(s, "fp32") for s in first]
    return [f"{spec.name}-{s.name.replace(' ', '_')}-{dtype}" for s, dtype in chosen]


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
@pytest.mark.timeout(600)
@pytest.mark.parametrize("op", [spec.name for spec in SPECS])
def test_kernels_under_the_sanitizers(op: str) -> None:
    libraries = [runtime("libasan.so"), runtime("libubsan.so")]
    if not all(Path(library).is_absolute() for library in libraries):
        pytest.skip("this compiler has no AddressSanitizer runtime")
    test = "tests/simt/test_ops.py::test_against_the_float64_oracle"
    ids = smallest(REGISTRY[op])
    command = [
        sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider",
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
