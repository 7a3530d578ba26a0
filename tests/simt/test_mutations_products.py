"""Mutations of the matrix products: each must be seen, as a finding, a count or a wrong result.

As test_mutations.py: a mutation is a textual patch, and one that no longer applies fails.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from flashvl_kernels import simt
from flashvl_kernels.spec import REGISTRY
from tests.simt.test_mutations import Fault, check_seen
from tests.simt.test_ops import flat_call
from tests.simt.test_product_counters import ONE, linear

pytestmark = pytest.mark.skipif(simt.unavailable() is not None, reason=str(simt.unavailable()))

MMA, FEW, FMA = "product_mma.cuh", "product_few.cuh", "product_fma.cuh"
LINEAR, SWIGLU, GELU = "linear", "swiglu_mlp", "gelu_mlp"
TILES = "tiles of rows and of outputs, and a rest of both"
WAIT = "cp_async_wait<kStages - 2>();"
BARRIER = "sync_block();  // the step is there, and the stage before it has been read by all"


def sample(op: str, name: str, dtype: torch.dtype) -> tuple[Any, ...]:
    spec = REGISTRY[op]
    return flat_call(spec, next(s for s in spec.samples if s.name == name), dtype)


def fault(
    op: str,
    name: str,
    file: str,
    old: str,
    new: str,
    seen: str,
    dtype: torch.dtype = torch.bfloat16,
) -> Fault:
    return Fault(op, file, old, new, seen, sample(op, name, dtype))


FAULTS = {
    "a step multiplied before its copies are there": fault(
        LINEAR, TILES, MMA, WAIT, "", "missing_cp_async_wait"
    ),
    "a stage copied into while others read it": fault(
        LINEAR, "37 rows, bf16, rows", MMA, BARRIER, "", "shared_race"
    ),
    "sums stored over a ring in use": fault(
        LINEAR, "37 rows, bf16, rows", MMA, "sync_block();  // the ring makes room for the sums",
        "", "shared_race",
    ),
    "rows of 64 bytes not permuted": fault(
        LINEAR, TILES, "product_stage.cuh", "chunk ^= row / 2 % 4", "chunk ^= 0",
        "bank_conflicts",
    ),
    "the halves of a step swapped for x": fault(
        LINEAR, TILES, MMA, "2 * half + l / 16)", "2 * (1 - half) + l / 16)", "output"
    ),
    "the zero of int4 off by one": fault(
        LINEAR, "37 rows, int4, rows", "product_weights.cuh", "& 15u, 8.0f", "& 15u, 7.0f",
        "output",
    ),
    "scales of another group": fault(
        LINEAR, "37 rows, int4, rows", MMA, "there ? row * groups + group", "there ? row * groups",
        "output",
    ),
    "scales copied over those still read": Fault(
        LINEAR, MMA, "s / kGroupSteps % (2 * kGroups)", "s / kGroupSteps % kGroups",
        "missing_cp_async_wait", linear(10, 264, 1300, "int4"), ONE,
    ),
    "the other of two steps of int4": fault(
        LINEAR, "37 rows, int4, rows", MMA, "s % kWSteps * (kStep / 8) +", "", "output"
    ),
    "steps of int4 copied into while others read them": fault(
        LINEAR, "37 rows, int4, rows", MMA, "kWSteps == 1 ? kStages : 3;",
        "kWSteps == 1 ? kStages : 2;", "shared_race",
    ),
    "rows of a tile guarded one too late": fault(
        LINEAR, "batches of many rows, cut short", MMA, "row < args.rows ?", "row <= args.rows ?",
        "global_out_of_bounds",
    ),
    "few rows guarded one too late": fault(
        LINEAR, "batches of few rows, cut short", FEW, "group < args.rows ?",
        "group <= args.rows ?", "global_out_of_bounds",
    ),
    "rows of fp32 guarded one too late": fault(
        LINEAR, "batches of many rows, cut short", FMA, "row < args.rows ?", "row <= args.rows ?",
        "global_out_of_bounds", torch.float32,
    ),
    "results of one row too many": fault(
        LINEAR, TILES, "product.cuh", "min(args.rows - place.first_row,",
        "min(args.rows + 1 - place.first_row,", "global_out_of_bounds",
    ),
    "a row of w at an offset of 32 bits": fault(
        LINEAR, "third weight row past 2^31", FEW, "w_at_[i] = row >= 0 ? row * args.w_stride",
        "w_at_[i] = row >= 0 ? static_cast<int32_t>(2 * row * args.w_stride) / 2", "output",
    ),
    "a missing row of w read": fault(
        LINEAR, "odd sizes", FEW, "if (inside && w_at_[i] >= 0)", "if (inside)",
        "global_out_of_bounds",
    ),
    "a warp's sums left out": fault(
        LINEAR, "a long sum, bf16", FEW, "w < kWarps; ++w", "w < kWarps - 1; ++w", "output"
    ),
    "sums added before all warps wrote them": fault(
        LINEAR, "one row", FEW, "    sync_block();\n    const int row = threadIdx.x % kRows",
        "    const int row = threadIdx.x % kRows", "shared_race",
    ),
    "parts of a sum added by the last block but one": fault(
        LINEAR, "a long sum, bf16", "arrival.cuh", "== blocks - 1", "== blocks - 2", "output",
        torch.float32,
    ),
    "LayerNorm without the mean": fault(
        LINEAR, "a long sum, int8", "product_norm.cuh", "(value - of.mean - of.slip)", "(value)",
        "output",
    ),
    "a stage of fp32 copied into while others read it": fault(
        LINEAR, TILES, FMA, BARRIER, "", "shared_race", torch.float32
    ),
    "a column of fp32 taken twice": fault(
        LINEAR, TILES, FMA, "threadIdx.x / kWChunks;", "threadIdx.x / kWChunks / 2 * 2;",
        "output", torch.float32,
    ),
    "gates and ups swapped": fault(
        SWIGLU, "one row", "product.cuh", "column % 16 < 8 ? unit", "column % 16 >= 8 ? unit",
        "output",
    ),
    "the residual forgotten": fault(
        SWIGLU, "rows", "product.cuh", "if (args.residual) value += to_float(more[e]);", "",
        "output",
    ),
    "statistics read before they are found": fault(
        SWIGLU, "one row", FEW, "    sync_block();\n    if (x_at_ >= 0) {", "    if (x_at_ >= 0) {",
        "shared_race",
    ),
    "a unit past the gate taken": fault(
        SWIGLU, "width 1", "product.cuh", "if (unit >= args.units) return -1;",
        "if (unit > args.units) return -1;", "global_out_of_bounds",
    ),
    "GELU by tanh without its cube": fault(
        GELU, "rows", "product.cuh", "0.044715f * x * x * x", "0.0f", "output"
    ),
    "the bias of the neighbour": fault(
        GELU, "rows", "product.cuh", "four(args.bias, unit)", "four(args.bias, unit ^ 4)",
        "output",
    ),
    "the mean's last bits dropped twice": fault(
        GELU, "rows", "product_norm.cuh", "of.slip = sum(rest) / count;",
        "of.slip = -of.mean;", "output",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_seen(name: str, tmp_path: Path) -> None:
    check_seen(FAULTS[name], name, tmp_path)
