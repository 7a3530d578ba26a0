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

from flashvl_kernels import simt

ROOT = Path(__file__).resolve().parents[2]


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
@pytest.mark.parametrize("op", ["rms_norm", "layer_norm", "swiglu"])
def test_kernels_under_the_sanitizers(op: str) -> None:
    libraries = [runtime("libasan.so"), runtime("libubsan.so")]
    if not all(Path(library).is_absolute() for library in libraries):
        pytest.skip("this compiler has no AddressSanitizer runtime")
    command = [
        sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider",
        "tests/simt/test_ops.py", "-k", f"oracle and bf16 and {op}",
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
    assert "passed" in done.stdout and "runtime error" not in done.stdout + done.stderr
