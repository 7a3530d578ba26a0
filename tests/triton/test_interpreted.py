"""Every Triton kernel in fp32 under TRITON_INTERPRET=1, which runs its Python line by line.

Another execution than test_kernels_from_ir.py's, and Triton's own. It reads no race and no access
out of bounds, and multiplies bf16 wrongly (Triton 3.8.0), so that it is the second opinion only.
The switch is read where a kernel is defined: this file, as a program, runs the calls of one op.
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


def work(spec: OpSpec) -> list[str]:
    """The calls of an op, run and judged here: what is wrong with each, "" if nothing."""
    kernels = triton.module(spec.name)
    found = []
    for sample in spec.samples:
        if sample.kind in KINDS:
            print(sample.name, flush=True)
            said = call(spec, kernels, sample)
            found += [] if said is None else [said]
    return found


@pytest.mark.skipif(bool(triton.missing()), reason=str(triton.missing()))
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_every_call_is_right_when_interpreted(spec: OpSpec) -> None:
    done = subprocess.run(
        [sys.executable, __file__, spec.name],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stdout.splitlines()
    last = lines[-1] if lines else "before the first call"
    assert done.returncode == 0, f"status {done.returncode} in {last}: {done.stderr[-2000:]}"
    found: list[str] = json.loads(last)
    assert found
    assert not any(found), "\n".join(filter(None, found))


if __name__ == "__main__":
    print(json.dumps(work(REGISTRY[sys.argv[1]])))
