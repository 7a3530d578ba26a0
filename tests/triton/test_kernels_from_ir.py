"""Every Triton kernel on every sample and dtype, executed from its IR, against the oracle."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from semantics import beside_the_oracle, executed, rounds_otherwise
from torch import Tensor

from flashvl_kernels import numerics, triton
from flashvl_kernels.gpu import RTX_3090, Device
from flashvl_kernels.spec import REGISTRY, OpSpec, Sample, capture
from flashvl_kernels.triton import launch

# On a GPU of one processor, tiles join rows and grids loop, as full-size calls do on a real one.
SMALL = replace(RTX_3090, multiprocessors=1)
LAUNCHES = [
    pytest.param(launch.EMULATED, torch.bfloat16, id="bf16"),
    pytest.param(launch.EMULATED, torch.float16, id="fp16"),
    pytest.param(launch.EMULATED, torch.float32, id="fp32"),
    pytest.param(SMALL, torch.bfloat16, id="bf16-one_processor"),
]
SPECS = [spec for spec in REGISTRY.values() if "triton" in spec.kernels]
KINDS = ("typical", "edge", "strided", "zero")
MOST_FLOPS = 1e8
"""What is executed in seconds; a product of more has its tiles and rests in smaller samples too."""


def samples(*kinds: str) -> list[Any]:
    """A pytest parameter for each op with a kernel and each of its samples of these kinds."""
    return [
        pytest.param(spec, sample, id=f"{spec.name}-{sample.name.replace(' ', '_')}")
        for spec in SPECS
        for sample in spec.samples
        if sample.kind in kinds
    ]


def flat_call(spec: OpSpec, sample: Sample, dtype: torch.dtype, draw: int = 0) -> tuple[Any, ...]:
    built = sample.build(dtype, draw=draw)
    return capture(spec.function, *built.args, **built.kwargs)[1]


@pytest.mark.parametrize(("device", "dtype"), LAUNCHES)
@pytest.mark.parametrize(("spec", "sample"), samples(*KINDS))
def test_against_the_float64_oracle(
    spec: OpSpec,
    sample: Sample,
    device: Device,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(launch, "describe", lambda _: device)
    flat = flat_call(spec, sample, dtype)
    kernels = triton.module(spec.name)
    reason = kernels.why_not(*flat)
    if reason is not None:
        pytest.skip(f"not supported: {reason}")
    if (flops := spec.cost(*flat).flops) > MOST_FLOPS:
        pytest.skip(f"{flops:.2g} FLOPs are too many to be executed and checked for races")

    def drawn(draw: int) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        drawn_flat = flat_call(spec, sample, dtype, draw)
        with executed() as launched:
            got = numerics.results(spec, kernels.run, drawn_flat)
        # A zero-size call may still have an output to fill; a call with elements has work to do.
        assert launched or sample.kind == "zero"
        # Behind what is returned come the arguments written into, which keep their strides.
        assert all(each.is_contiguous() for each in got[: len(spec.op._schema.returns)])
        return beside_the_oracle(spec, drawn_flat, got)

    more = partial(flat_call, spec, sample, dtype)
    assert not (why := numerics.refusal_over_draws(spec, drawn, more)), why


@pytest.mark.parametrize(("spec", "sample"), samples("far"))
def test_offsets_past_2_to_the_31(spec: OpSpec, sample: Sample) -> None:
    flat = flat_call(spec, sample, torch.bfloat16)
    near = tuple(a.contiguous() if isinstance(a, torch.Tensor) else a for a in flat)
    run = triton.module(spec.name).run
    with executed() as launched:
        results = [numerics.outputs(run(*call)) for call in (flat, near)]
    assert launched
    for far, expected in zip(*results, strict=True):
        assert torch.equal(far, expected)


@pytest.mark.parametrize(("spec", "sample"), samples("typical"))
def test_rounds_where_the_reference_rounds(spec: OpSpec, sample: Sample) -> None:
    kernels = triton.module(spec.name)
    share = getattr(kernels, "BIT_EQUAL", 0.0)
    if not share:
        pytest.skip("the kernel file claims no BIT_EQUAL share: it may round elsewhere")
    flat = flat_call(spec, sample, torch.bfloat16)
    with executed():
        got = numerics.results(spec, kernels.run, flat)
    assert not (found := rounds_otherwise(spec, share, flat, got)), found


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_most_samples_are_supported(spec: OpSpec) -> None:
    """A kernel that refuses calls would pass all of the above."""
    why_not = triton.module(spec.name).why_not
    calls = {
        sample.name: flat_call(spec, sample, torch.bfloat16)
        for sample in spec.samples
        if sample.kind in KINDS
    }
    asked = {name: flat for name, flat in calls.items() if not in_panels(flat)}
    refused = [name for name, flat in asked.items() if why_not(*flat) is not None]
    assert len(refused) * 4 <= len(asked), refused


def in_panels(flat: tuple[Any, ...]) -> bool:
    """A weight in the CPU's layout, which no GPU kernel is meant to read."""
    return any(isinstance(each, str) and each.endswith("_panels") for each in flat)
