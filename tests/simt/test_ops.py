"""Every op with a CUDA kernel, executed by csrc/simt: each sample and dtype against the oracle.

Generated from the registry: an op is here as soon as there is a csrc/cuda/<op>.cuh.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from flashvl_kernels import numerics, simt
from flashvl_kernels.cuda import plan_module
from flashvl_kernels.cuda.device import DEVICES, L4
from flashvl_kernels.shapes import meta_call
from flashvl_kernels.simt.build import CSRC
from flashvl_kernels.spec import REGISTRY, OpSpec, Sample, capture

pytestmark = pytest.mark.skipif(simt.unavailable() is not None, reason=str(simt.unavailable()))

SPECS = [spec for spec in REGISTRY.values() if (CSRC / "cuda" / f"{spec.name}.cuh").is_file()]


def calls(*kinds: str) -> list[Any]:
    """A pytest parameter for each op, sample of these kinds, and dtype."""
    return [
        pytest.param(spec, sample, dtype, id=f"{spec.name}-{sample.name.replace(' ', '_')}-{name}")
        for spec in SPECS
        for sample in spec.samples
        if sample.kind in kinds
        for name, dtype in simt.DTYPES.items()
    ]


def flat_call(spec: OpSpec, sample: Sample, dtype: torch.dtype, draw: int = 0) -> tuple[Any, ...]:
    built = sample.build(dtype, draw=draw)
    _, flat = capture(spec.function, *built.args, **built.kwargs)
    return flat


FLOPS_LIMIT = 10**9
"""A sample with more would run for minutes; each op has a smaller one on the same path."""


def refused(spec: OpSpec, flat: tuple[Any, ...]) -> str | None:
    """Why the CUDA kernels of an op do not take a call; None where they do."""
    supports = spec.kernels.get("cuda")
    return None if supports is None else supports(*flat)


def wrong(spec: OpSpec, flat: tuple[Any, ...], result: simt.Result) -> list[str]:
    """What is not as it should be: findings, then outputs the oracle refuses."""
    texts = [str(finding) for finding in result.findings]
    why = numerics.refusal(spec, *beside_the_oracle(spec, flat, result))
    return [*texts, why] if why else texts


def beside_the_oracle(
    spec: OpSpec, flat: tuple[Any, ...], result: simt.Result
) -> tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]]:
    plain, truth = numerics.results(spec, spec.reference, flat), numerics.oracle(spec, flat)
    return (*result.outputs, *result.mutated), plain, truth


def test_an_op_with_a_kernel_has_a_plan() -> None:
    assert {spec.name for spec in SPECS} >= {"rms_norm", "layer_norm", "swiglu"}
    for spec in SPECS:
        assert plan_module(spec.name) is not None, f"flashvl_kernels/cuda/{spec.name}.py is missing"


@pytest.mark.parametrize(
    ("spec", "sample", "dtype"), calls("typical", "edge", "strided", "zero", "far")
)
def test_against_the_float64_oracle(spec: OpSpec, sample: Sample, dtype: torch.dtype) -> None:
    flat = flat_call(spec, sample, dtype)
    if reason := refused(spec, flat):
        pytest.skip(reason)
    if spec.cost(*flat).flops > FLOPS_LIMIT:
        pytest.skip(f"more than {FLOPS_LIMIT:.0e} FLOPs, minutes under simt")
    results: list[simt.Result] = []

    def drawn(draw: int) -> tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]]:
        drawn_flat = flat_call(spec, sample, dtype, draw)
        results.append(simt.call(spec, drawn_flat))
        assert not results[-1].findings, "\n".join(map(str, results[-1].findings))
        return beside_the_oracle(spec, drawn_flat, results[-1])

    more = partial(flat_call, spec, sample, dtype)
    assert not (why := numerics.refusal_over_draws(spec, drawn, more)), why
    result = results[0]
    for output, fake in zip(result.outputs, numerics.outputs(spec.fake(*flat)), strict=True):
        assert (output.shape, output.stride()) == (fake.shape, fake.stride())


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5)).bfloat16()


def rms(rows: int, columns: int, residual: bool = False) -> tuple[Any, ...]:
    added = normal(rows, columns) if residual else None
    return normal(rows, columns), normal(columns), 1e-6, added


def layer(rows: int, columns: int, residual: bool = False) -> tuple[Any, ...]:
    added = normal(rows, columns) if residual else None
    return normal(rows, columns), normal(columns), normal(columns), 1e-6, added


# Calls that lead into each branch of the plans, with the widths of the models: schema arguments.
# Many rows, so that what is not a whole sector or not the row itself shows.
BRANCHES: dict[str, tuple[str, tuple[Any, ...]]] = {
    "rms_norm, a warp a row": ("rms_norm", rms(300, 1536, residual=True)),
    "rms_norm, a block a row": ("rms_norm", rms(9, 8960)),
    "rms_norm, a long row": ("rms_norm", rms(2, 40000, residual=True)),
    "rms_norm, a long odd row": ("rms_norm", rms(2, 1537)),
    "layer_norm, a warp a row": ("layer_norm", layer(260, 1152)),
    "layer_norm, a block a row": ("layer_norm", layer(9, 4608, residual=True)),
    "layer_norm, a long row": ("layer_norm", layer(2, 20000)),
    "swiglu, narrow rows": ("swiglu", (normal(70, 192),)),
    "swiglu, wide rows": ("swiglu", (normal(12, 2 * 8960),)),
}


@pytest.mark.parametrize("name", BRANCHES)
def test_bytes_and_sectors_at_the_widths_of_the_models(name: str) -> None:
    """At most 1.05 times the bytes that must move, in whole sectors, all in 16-byte accesses."""
    op, flat = BRANCHES[name]
    spec = REGISTRY[op]
    result = simt.call(spec, flat, L4)
    assert not wrong(spec, flat, result), "\n".join(wrong(spec, flat, result))
    counters = result.counters
    assert counters["bank_conflicts"] == 0
    odd = "odd" in name
    assert result.bytes_from_memory <= (1.2 if odd else 1.05) * spec.cost(*flat).bytes
    if not odd:
        assert result.sector_efficiency >= 0.95
        assert counters["wide_accesses"] == counters["global_reads"] + counters["global_writes"]


@pytest.mark.parametrize("device", DEVICES, ids=lambda d: d.name)
@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.name)
def test_the_plans_of_every_device_give_right_results(spec: OpSpec, device: Any) -> None:
    for sample in [s for s in spec.samples if s.kind == "typical"]:
        flat = flat_call(spec, sample, torch.bfloat16)
        if refused(spec, flat) is None:
            assert not wrong(spec, flat, simt.call(spec, flat, device))


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.name)
def test_plans_name_only_kernels_that_are_built(spec: OpSpec) -> None:
    """For every sample, the full-size ones included: a missing instance fails at a user's."""
    plan = plan_module(spec.name)
    assert plan is not None
    known = set(plan.instances())
    for sample in [s for s in spec.samples if s.kind not in ("hostile",)]:
        for dtype in simt.DTYPES.values():
            # Full size without its values: a vocabulary takes seconds to draw and to pack.
            make = meta_call if sample.kind == "bench" else flat_call
            flat = make(spec, sample, dtype)
            for device in DEVICES if refused(spec, flat) is None else ():
                for launch in plan.prepare(flat, device).launches:
                    assert launch.kernel in known
                    assert launch.block[0] * launch.block[1] * launch.block[2] <= 1024
                    assert launch.block[0] % 32 == 0
                    assert launch.shared_bytes <= device.shared_bytes_per_block
                    assert launch.grid[0] < 2**31 and max(launch.grid[1:]) <= 65535
