"""Every Triton kernel in fp32 under TRITON_INTERPRET=1, which runs its Python line by line.

Another execution than test_kernels_from_ir.py's, and Triton's own. It reads no race and no access
out of bounds, and multiplies bf16 wrongly (Triton 3.8.0), so that it is the second opinion only.
The switch is read where a kernel is defined: this file, as a program, runs all calls in a process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from pathlib import Path
from types import ModuleType

import pytest
import torch

from flashvl_kernels import numerics, triton
from flashvl_kernels.spec import REGISTRY, OpSpec, Sample, capture

KINDS = ("typical", "edge", "strided", "zero")
ROOT = Path(__file__).resolve().parents[2]
SPECS = [spec for spec in REGISTRY.values() if "triton" in spec.kernels]


def call(spec: OpSpec, kernels: ModuleType, sample: Sample) -> str | None:
    """What is wrong with a call, "" if nothing; None where the kernel does not take it."""
    built = sample.build(torch.float32)
    flat = capture(spec.function, *built.args, **built.kwargs)[1]
    if kernels.why_not(*flat) is not None:
        return None
    try:
        got = numerics.results(spec, kernels.run, flat)
    except Exception:
        return f"{sample.name}: {traceback.format_exc()[-1500:]}"
    plain, truth = numerics.results(spec, spec.reference, flat), numerics.oracle(spec, flat)
    refused = numerics.refusal(spec, got, plain, truth)
    return f"{sample.name}, {refused}" if refused else ""


def work() -> dict[str, list[str]]:
    """Each op's calls, run and judged in this process: what is wrong with each, "" if nothing."""
    found: dict[str, list[str]] = {}
    for spec in SPECS:
        kernels = triton.module(spec.name)
        found[spec.name] = []
        for sample in spec.samples:
            if sample.kind in KINDS:
                print(f"{spec.name}, {sample.name}", flush=True)
                said = call(spec, kernels, sample)
                found[spec.name] += [] if said is None else [said]
    return found


@pytest.fixture(scope="module")
def interpreted() -> dict[str, list[str]]:
    if triton.missing():
        pytest.skip(str(triton.missing()))
    done = subprocess.run(
        [sys.executable, __file__],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    lines = done.stdout.splitlines()
    last = lines[-1] if lines else "before the first call"
    assert done.returncode == 0, f"status {done.returncode} in {last}: {done.stderr[-2000:]}"
    found: dict[str, list[str]] = json.loads(last)
    return found


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_every_call_is_right_when_interpreted(
    spec: OpSpec, interpreted: dict[str, list[str]]
) -> None:
    assert interpreted[spec.name]
    assert not any(interpreted[spec.name]), "\n".join(filter(None, interpreted[spec.name]))


if __name__ == "__main__":
    print(json.dumps(work()))
