"""Every CUDA kernel compiled for every architecture: no local memory, and as its budget says.

`python -m flashvl_kernels.cuda.resources` writes the budget anew; the difference belongs in review.
All kernels become PTX here; where that is what the budget was made from, one architecture of a
family stands for all (ptxas makes the same of the same), and FLASHVL_SLOW_TESTS=1 asks for each.
"""

from __future__ import annotations

import copy
import json
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from flashvl_kernels.cuda import kernels_of, machine_code, nvcc, resources, sources
from flashvl_kernels.cuda.device import ARCHITECTURES
from tests.slow import SLOW

BUDGET = json.loads(resources.BUDGET.read_text())
EXACT = ("shared", "load", "store")
"""What another release of nvcc must not change; registers and the order of products it may."""


def version() -> str:
    """The release of nvcc: another one allocates registers otherwise."""
    return str(BUDGET["nvcc"])


def test_every_op_with_a_kernel_has_a_budget() -> None:
    assert set(BUDGET) == {"nvcc", *resources.ops()}
    for op in resources.ops():
        own = {"made from", *(f"sm_{a}" for a in ARCHITECTURES)}
        assert set(BUDGET[op]) == {"launches", *(own if op in resources.compiled_ops() else ())}


def architectures(op: str, family: int, ptx: nvcc.Ptx) -> list[int]:
    """Which to compile for: all of a family, but where the PTX is what the budget was made from and
    nobody touched the rows since, one of them, another for the next op."""
    own = nvcc.families(ARCHITECTURES)[family]
    sealed = BUDGET[op]["made from"][f"compute_{family}"]
    if resources.seal(ptx, family, BUDGET[op]) != sealed:
        command = f"python -m flashvl_kernels.cuda.resources {op}"
        warnings.warn(f"the budget of {op} is of other PTX or rows: {command}", stacklevel=2)
        return own
    if SLOW:
        return own
    return [own[resources.compiled_ops().index(op) % len(own)]]


@pytest.mark.parametrize("family", nvcc.FAMILIES)
@pytest.mark.parametrize("op", resources.compiled_ops())
def test_kernels_keep_to_their_budget(op: str, family: int, tmp_path: Path) -> None:
    why_not = resources.unavailable()
    if why_not is not None:
        pytest.skip(why_not)
    ptx = nvcc.ptx(op, tmp_path, family)
    same_compiler = nvcc.release() == version()
    for architecture in architectures(op, family, ptx):
        found, budget = resources.kernels(ptx, architecture), BUDGET[op][f"sm_{architecture}"]
        assert set(found) == set(budget)
        for name, (used, code) in found.items():
            kernel = f"{name} on sm_{architecture}"
            assert used.spilled_bytes == used.stack_bytes == 0, f"{kernel}: local memory, {used}"
            assert code.local == 0, f"{kernel}: {code.local} accesses to local memory"
            assert code.generic == 0, f"{kernel}: {code.generic} accesses to no known memory"
            now = resources.budget_of(used, code)
            assert bool(now["products"]) == bool(budget[name]["products"]), f"{kernel}: {now}"
            for key in budget[name] if same_compiler else EXACT:
                assert now[key] == budget[name][key], f"{kernel}: {now}, budget {budget[name]}"


def test_other_ptx_or_rows_are_compiled_for_all_architectures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ptx = nvcc.Ptx("swiglu", tmp_path / "swiglu.ptx")
    ptx.path.write_text("the PTX of the budget")
    own = copy.deepcopy(BUDGET["swiglu"])
    own["made from"]["compute_80"] = resources.seal(ptx, 80, own)
    monkeypatch.setitem(BUDGET, "swiglu", own)
    monkeypatch.setattr(sys.modules[__name__], "SLOW", False)
    assert len(architectures("swiglu", 80, ptx)) == 1
    kernel = next(iter(own["sm_89"].values()))
    kernel["registers"] += 1
    with pytest.warns(UserWarning, match=r"other PTX or rows: python -m .*resources swiglu"):
        assert architectures("swiglu", 80, ptx) == [80, 86, 89, 90]
    kernel["registers"] -= 1
    ptx.path.write_text("another")
    with pytest.warns(UserWarning, match="other PTX or rows"):
        assert architectures("swiglu", 80, ptx) == [80, 86, 89, 90]


def test_of_unchanged_ptx_some_op_is_compiled_for_every_architecture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "SLOW", False)
    monkeypatch.setattr(
        resources, "seal", lambda _, family, rows: rows["made from"][f"compute_{family}"]
    )
    taken = [
        architectures(op, family, nvcc.Ptx(op, tmp_path))
        for op in resources.compiled_ops() for family in nvcc.FAMILIES
    ]  # fmt: skip
    assert all(len(each) == 1 for each in taken)
    assert {each[0] for each in taken} == set(ARCHITECTURES)


def test_the_sources_tell_only_families_apart() -> None:
    """Else machine code made from a family's PTX would not be what the source asks for."""
    text = "".join(path.read_text() for path in sources.folder().rglob("*.cuh"))
    compared = re.findall(r"__CUDA_ARCH__ *[<>=!]+ *(\d+)", text)
    assert text.count("__CUDA_ARCH__") == len(compared) + text.count("defined(__CUDA_ARCH__)")
    assert {int(number) // 10 for number in compared} <= set(nvcc.FAMILIES)


def test_an_architecture_before_all_families_is_refused() -> None:
    with pytest.raises(ValueError, match="sm_75 is too old: kernels need sm_80 or newer"):
        nvcc.families([90, 75])


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
