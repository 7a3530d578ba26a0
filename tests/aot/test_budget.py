"""Every CUDA kernel compiled for every architecture: no local memory, and as its budget says.

`python -m flashvl_kernels.cuda.resources` writes the budget anew; the difference belongs in review.
"""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from flashvl_kernels.cuda import kernels_of, machine_code, nvcc, resources
from flashvl_kernels.cuda.device import ARCHITECTURES

BUDGET = json.loads(resources.BUDGET.read_text())
EXACT = ("shared", "load", "store")
"""What another release of nvcc must not change; registers and the order of products it may."""


def version() -> str:
    """The release of nvcc: another one allocates registers otherwise."""
    return str(BUDGET["nvcc"])


def test_every_op_with_a_kernel_has_a_budget() -> None:
    assert set(BUDGET) == {"nvcc", *resources.ops()}
    for op in resources.ops():
        own = {f"sm_{a}" for a in ARCHITECTURES if op in resources.compiled_ops()}
        assert set(BUDGET[op]) == {"launches", *own}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("op", resources.compiled_ops())
def test_kernels_keep_to_their_budget(op: str, architecture: int) -> None:
    why_not = resources.unavailable()
    if why_not is not None:
        pytest.skip(why_not)
    found = resources.compile_op(op, architecture)
    budget = BUDGET[op][f"sm_{architecture}"]
    assert set(found) == set(budget)
    same_compiler = nvcc.release() == version()
    for name, (used, code) in found.items():
        assert used.spilled_bytes == used.stack_bytes == 0, f"{name} uses local memory: {used}"
        assert code.local == 0, f"{name} has {code.local} accesses to local memory"
        assert code.generic == 0, f"{name} has {code.generic} accesses to no known memory"
        now = resources.budget_of(used, code)
        assert bool(now["products"]) == bool(budget[name]["products"]), f"{name}: {now}"
        for key in budget[name] if same_compiler else EXACT:
            assert now[key] == budget[name][key], f"{name}: {now}, budget {budget[name]}"


@pytest.mark.parametrize("op", resources.ops())
def test_typical_launches_keep_their_occupancy(op: str) -> None:
    """The plans of today with the registers of the budget: no compiler is needed."""
    found: dict[str, Any] = resources.resident(op, BUDGET[kernels_of(op)])
    assert found == BUDGET[op]["launches"]
    assert found and all(launch["blocks"] > 0 for launch in found.values())


def test_the_budget_is_as_the_command_writes_it() -> None:
    assert resources.dump(BUDGET) == resources.BUDGET.read_text()


def test_a_spill_is_read_from_the_report() -> None:
    """The parser sees what the test above forbids."""
    report = """ptxas info    : Compiling entry function 'void flashvl::cuda::k<float, 4>(Args)' for
        48 bytes stack frame, 52 bytes spill stores, 52 bytes spill loads
    ptxas info    : Used 128 registers, used 1 barriers, 48 bytes cumulative, 256 bytes smem"""
    (used,) = resources._parse(report).values()
    assert (used.spilled_bytes, used.stack_bytes, used.registers, used.shared_bytes) == (
        52, 48, 128, 256,
    )  # fmt: skip
    assert re.fullmatch(r"\d+\.\d+", version())


def test_local_and_generic_memory_are_read_from_the_disassembly() -> None:
    code = """
        /*0010*/  LDG.E.NA.128.CONSTANT R4, [R26.64] ;
        /*0020*/  @!P0 LDG.E.U16 R8, [R22.64] ;
        /*0030*/  LDGSTS.E.BYPASS.128 [R21+0x280], [R16.64], P1 ;
        /*0040*/  STG.E [R26.64+0x4], R5 ;
        /*0050*/  STG.E.U16 [R26.64+0x4], R5 ;
        /*0060*/  STL.64 [R1], R2 ;
        /*0070*/  @P0 LDL R2, [R1] ;
        /*0080*/  LD.E R2, [R4.64] ;
        /*0090*/  HMMA.16816.F32.BF16 R4, R8, R12, R4 ;
        /*00a0*/  LDGDEPBAR ;
        /*00b0*/  LDS.128 R4, [R4] ;
    """
    assert machine_code.code_of(code) == machine_code.Code(1, 16, 4, 2, 1)
