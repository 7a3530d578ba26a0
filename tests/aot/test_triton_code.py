"""The machine code of every Triton kernel on eight architectures: what it must show, and no change.

Registers, shared memory and accesses are compared with tests/aot/triton_budget.json, which
`python tests/aot/triton_compile.py --write` writes again: a change is meant, or it is a regression.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import triton_compile
from triton_compile import TARGETS, Compilers, Facts, Job

from flashvl_kernels import triton as backend
from flashvl_kernels.spec import REGISTRY, OpSpec

if backend.missing():
    pytest.skip(f"nothing can be compiled: {backend.missing()}", allow_module_level=True)

import small_product

SPECS = list(triton_compile.claimed())
BUDGET = json.loads(triton_compile.BUDGET.read_text())
PINNED = "3.8.0"


@pytest.fixture(scope="module")
def compilers() -> Iterator[Compilers]:
    pool = Compilers()
    yield pool
    pool.close()


def kernels(built: dict[Job, Facts]) -> Iterator[tuple[Job, str, dict[str, Any]]]:
    """Each compiled kernel: its job, its function's name, its facts."""
    for job, facts in built.items():
        for name, each in facts.items():
            yield job, name.split()[0], each


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_the_code_shows_what_its_file_expects_and_is_that_of_the_budget(
    spec: OpSpec, compilers: Compilers
) -> None:
    """One test, so that what it compiles is compiled in one process only."""
    started = compilers.start(spec)
    built = {job: future.result() for job, future in started.items()}
    expected = backend.module(spec.name).EXPECT
    assert {name for _, name, _ in kernels(built)} == set(expected), "EXPECT names every kernel"
    for job, name, facts in kernels(built):
        lacks = triton_compile.shortcoming(job, name, facts)
        assert lacks is None, f"{name}, {triton_compile.entry(job)}, {lacks}: {facts}"
    if backend.version() != PINNED:
        pytest.skip(f"the budget is that of triton {PINNED}; this is {backend.version()}")
    found = {triton_compile.entry(job): facts for job, facts in built.items()}
    assert found == BUDGET["ops"].get(spec.name), (
        "resources changed; if that is meant: python tests/aot/triton_compile.py --write"
    )


def test_a_shortcoming_is_named() -> None:
    """Each of what EXPECT asks for, taken away from a kernel that has it."""
    job, fp32 = Job("linear", "", "bf16", "sm_90"), Job("linear", "", "fp32", "sm_90")
    sound = {"spilled_bytes": 0, "wide": 4, "narrow": 0, "matrix": "mma.sync"}
    for kernel in ("product_kernel", "finish_kernel 2"):
        assert triton_compile.shortcoming(job, kernel, sound) is None
        spilled = sound | {"spilled_bytes": 4}
        assert triton_compile.shortcoming(job, kernel, spilled) == "spills"
        assert triton_compile.shortcoming(replace(job, arch="gfx942"), kernel, spilled) is None
    for narrow in (sound | {"narrow": 1}, sound | {"wide": 0}):
        assert triton_compile.shortcoming(job, "finish_kernel", narrow) == "has narrow accesses"
        assert triton_compile.shortcoming(job, "product_kernel", narrow) is None
    plain = sound | {"matrix": ""}
    assert triton_compile.shortcoming(job, "product_kernel", plain) == "uses no tensor core"
    assert triton_compile.shortcoming(fp32, "product_kernel", plain) is None


def test_the_budget_holds_no_op_that_is_gone() -> None:
    assert BUDGET["triton"] == PINNED
    assert set(BUDGET["ops"]) == {spec.name for spec in SPECS}


def launch_of(op: str, arch: str) -> triton_compile.Launch:
    job = next(job for job in triton_compile.jobs(REGISTRY[op]) if job.arch == arch)
    return triton_compile.record(job)[0]


@pytest.mark.parametrize("arch", ["sm_90", "gfx942"])
def test_narrow_accesses_are_seen(arch: str) -> None:
    """A row length that is no multiple of 16 bytes must not count as wide access."""
    launch = launch_of("swiglu", arch)
    odd = tuple(a - 1 if isinstance(a, int) and a == 8960 else a for a in launch.args)
    assert 8959 in [a for a in odd if isinstance(a, int)]
    compiled = triton_compile.build(replace(launch, args=odd), arch)
    read = triton_compile.read_amdgcn if arch == "gfx942" else triton_compile.read_ptx
    assert read(compiled)["narrow"] > 0


@pytest.mark.parametrize(("head_dim", "bits"), [(128, 128), (80, 128), (72, 64)])
def test_half_a_head_moves_in_vectors(head_dim: int, bits: int) -> None:
    """16 divides neither 40 nor 36 channels, so that Triton has to be told what does."""
    qkv = torch.empty(64, 3 * 4 * head_dim, dtype=torch.bfloat16, device="meta")
    cos, sin = torch.empty(2, 64, head_dim // 2, device="meta")
    (launch,) = triton_compile.launches("rope_qkv", (qkv, cos, sin, None, 4, 4), "sm_90")
    code = triton_compile.build(launch, "sm_90").asm["ptx"]
    accesses = re.findall(r"(?:ld|st)\.global(?:\.v(\d))?\.b(\d+)", code)
    widths = {int(many or 1) * int(width) for many, width in accesses}
    assert min(widths) == bits, widths


def test_spills_are_seen() -> None:
    """LayerNorm of 32768 columns on one warp: 1024 values a thread, which has 255 registers."""
    launch = launch_of("layer_norm", "sm_90")
    crowded = replace(launch, kwargs={**launch.kwargs, "COLUMNS": 32768, "num_warps": 1})
    assert triton_compile.read_ptx(triton_compile.build(crowded, "sm_90"))["spilled_bytes"] > 0


@pytest.mark.parametrize("arch", TARGETS)
def test_matrix_instructions_are_seen(arch: str) -> None:
    """A product of two 64x64 bf16 blocks uses the matrix unit of each architecture, a sum none."""
    args = [torch.empty(64, 64, dtype=torch.bfloat16, device="meta") for _ in range(3)]
    launch = triton_compile.Launch(small_product.kernel, tuple(args), {"num_warps": 4})
    read = triton_compile.read_amdgcn if TARGETS[arch].amd else triton_compile.read_ptx
    facts = read(triton_compile.build(launch, arch))
    unit = {"sm_90": "wgmma.mma_async", "sm_100": "tcgen05.mma"}
    assert facts["matrix"] == ("v_mfma" if TARGETS[arch].amd else unit.get(arch, "mma.sync"))
    assert facts["spilled_bytes"] == 0 and facts["wide"] > 0
    summed = read(triton_compile.build(launch_of("swiglu", arch), arch))
    assert summed["matrix"] == ""


def test_what_is_compiled_is_launched_with_the_block_of_the_target() -> None:
    """The recorded launch depends on the target: an AMD wave is twice as wide."""
    warps = {arch: launch_of("rms_norm", arch).kwargs["num_warps"] for arch in ("sm_90", "gfx942")}
    assert warps["sm_90"] == 2 * warps["gfx942"]
