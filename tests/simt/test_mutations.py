"""Mutations of the kernels that ship: each must be seen, as a finding or as a wrong result.

A mutation is a textual patch; one that no longer applies fails its test.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from flashvl_kernels import simt
from flashvl_kernels.cuda import kernels_of, plan_module
from flashvl_kernels.cuda.device import L4, Device
from flashvl_kernels.simt.build import CSRC
from flashvl_kernels.spec import REGISTRY
from tests.simt.test_ops import normal, wrong

pytestmark = pytest.mark.skipif(simt.unavailable() is not None, reason=str(simt.unavailable()))


@dataclass(frozen=True)
class Fault:
    """file: under csrc/cuda; `old` becomes `new`; seen: a kind of finding, or "output".

    device: whose launch plan runs.
    """

    op: str
    file: str
    old: str
    new: str
    seen: str
    flat: tuple[Any, ...]
    device: Device = L4


WIDE = (normal(5, 4096), normal(4096), 1e-6, normal(5, 4096))
ODD = (normal(5, 77), normal(77), 1e-6, None)
SLICED = (normal(2, 5, 24)[:, 1:], normal(24), 1e-6, None)
LAYER = (normal(5, 4096), normal(4096), normal(4096), 1e-6, None)
OFFSET = (normal(5, 96) + 100, normal(96), normal(96), 1e-6, None)

FAULTS = {
    "no barrier in the sum over a block": Fault(
        "rms_norm", "reduce.cuh", "sync_block();", "", "shared_race", WIDE
    ),
    "one buffer for two sums": Fault(
        "layer_norm", "reduce.cuh", "turn_ ^= 1;", "", "shared_race", LAYER
    ),
    "a barrier for half of the warps": Fault(
        "rms_norm",
        "reduce.cuh",
        "sync_block();",
        "if (threadIdx.x < 64) sync_block();",
        "divergent_barrier",
        WIDE,
    ),
    "columns guarded one too late": Fault(
        "rms_norm", "norm_row.cuh", "if (c < columns) visit", "if (c <= columns) visit",
        "global_out_of_bounds", ODD,
    ),
    "rows guarded one too late": Fault(
        "rms_norm", "norm_row.cuh", "row < rows;", "row <= rows;", "global_out_of_bounds", ODD
    ),
    "a step of the shuffle tree left out": Fault(
        "rms_norm", "reduce.cuh", "kWarp / 2; by > 0", "kWarp / 4; by > 0", "output", ODD
    ),
    "the outer stride forgotten": Fault(
        "rms_norm", "rows.cuh", "group * outer_stride", "group * inner_stride",
        "output", SLICED,
    ),
    "the variance without the mean": Fault(
        "layer_norm", "layer_norm.cuh", "(v - mean) * (v - mean)", "v * v", "output", OFFSET
    ),
    "a scale that is one percent off": Fault(
        "rms_norm",
        "rms_norm.cuh",
        "round_to<T>(to_float(row[i]) * scale)",
        "(to_float(row[i]) * (scale * 1.01f))",
        "output",
        WIDE,
    ),
    "an offset of 32 bits": Fault(
        "swiglu", "rows.cuh", "return row * inner_stride;",
        "return static_cast<int32_t>(row * inner_stride);", "global_out_of_bounds", ("far",),
    ),
    "a vector that is not aligned": Fault(
        "swiglu", "swiglu.cuh", "gates + args.half", "gates + (args.half + 1)",
        "global_misaligned", (normal(4, 96),),
    ),
    "the halves swapped": Fault(
        "swiglu", "swiglu.cuh", "gated(gate[v][i], up[v][i])", "gated(up[v][i], gate[v][i])",
        "output", (normal(4, 96),),
    ),
}  # fmt: skip


def arguments(fault: Fault) -> tuple[Any, ...]:
    if fault.flat != ("far",):
        return fault.flat
    sample = next(s for s in REGISTRY[fault.op].samples if s.kind == "far")
    return sample.build(torch.bfloat16).args


def mutated(fault: Fault, folder: Path) -> Path:
    """A copy of csrc in `folder` with the patch applied."""
    for part in ("cuda", "simt"):
        shutil.copytree(CSRC / part, folder / "csrc" / part)
    path = folder / "csrc" / "cuda" / fault.file
    text = path.read_text()
    assert text.count(fault.old) == 1, f"the patch no longer applies to csrc/cuda/{fault.file}"
    path.write_text(text.replace(fault.old, fault.new))
    return folder / "csrc"


def check_seen(fault: Fault, name: str, folder: Path) -> None:
    """Run the op with the fault planted in a copy of its sources, and fail unless it is seen."""
    plan = plan_module(fault.op)
    assert plan is not None
    flat = arguments(fault)
    spec = REGISTRY[fault.op]
    used = dict.fromkeys(launch.kernel for launch in plan.prepare(flat, fault.device).launches)
    source = f'#include "cuda/{kernels_of(fault.op)}.cuh"'
    built = simt.build(source, list(used), f"{fault.op}, {name}", mutated(fault, folder))
    result = simt.call(spec, flat, fault.device, built)
    found = {finding.kind for finding in result.findings}
    if fault.seen == "output":
        assert any(text.startswith("output") for text in wrong(spec, flat, result))
    elif fault.seen == "bank_conflicts":
        assert result.counters["bank_conflicts"] > 0
    else:
        assert fault.seen in found, f"found {found}"


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_seen(name: str, tmp_path: Path) -> None:
    check_seen(FAULTS[name], name, tmp_path)
