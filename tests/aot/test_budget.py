"""Every CUDA kernel compiled for every architecture: no local memory, and no more than its budget.

`python -m flashvl_kernels.cuda.resources` writes the budget anew; the difference belongs in review.
"""

from __future__ import annotations

import json
import re

import pytest

from flashvl_kernels.cuda import resources
from flashvl_kernels.cuda.device import ARCHITECTURES

BUDGET = json.loads(resources.BUDGET.read_text())


def version() -> str:
    """The release of nvcc: another one allocates registers otherwise."""
    return str(BUDGET["nvcc"])


def test_every_op_with_a_kernel_has_a_budget() -> None:
    assert set(BUDGET) == {"nvcc", *resources.ops()}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("op", resources.ops())
def test_kernels_keep_to_their_budget(op: str, architecture: int) -> None:
    if resources.nvcc() is None:
        pytest.skip("nvcc is not on PATH; install the CUDA toolkit to compile the kernels")
    found = resources.compile_op(op, architecture)
    budget = BUDGET[op][f"sm_{architecture}"]
    assert set(found) == set(budget)
    same_compiler = resources.nvcc_release() == version()
    for name, used in found.items():
        assert used.spilled_bytes == used.stack_bytes == 0, f"{name} uses local memory: {used}"
        registers, shared = budget[name]
        assert used.shared_bytes == shared, f"{name}: {used.shared_bytes} bytes, budget {shared}"
        if same_compiler:
            assert used.registers == registers, f"{name}: {used.registers}, budget {registers}"


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
