"""Hand-written backward passes: gradients of every sample against those of the float64 reference,
under the rule of the results; what needs no gradient costs nothing; gradients of gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from flashvl_kernels import numerics
from flashvl_kernels.spec import REGISTRY, OpSpec, Sample, capture

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
SPECS = [spec for spec in REGISTRY.values() if spec.backward is not None]


def samples(*kinds: str) -> list[Any]:
    return [
        pytest.param(spec, sample, id=f"{spec.name}-{sample.name.replace(' ', '_')}")
        for spec in SPECS
        for sample in spec.samples
        if sample.kind in kinds
    ]


def flat_call(spec: OpSpec, sample: Sample, dtype: torch.dtype) -> tuple[Any, ...]:
    built = sample.build(dtype)
    return capture(spec.function, *built.args, **built.kwargs)[1]


def learning(flat: Sequence[Any]) -> list[int]:
    """Where the arguments that can have a gradient stand: floats, but no scales of integers."""
    packed = any(isinstance(a, Tensor) and not a.is_floating_point() for a in flat)
    return [
        i for i, a in enumerate(flat)
        if isinstance(a, Tensor) and a.is_floating_point()
        and not (packed and i and not isinstance(flat[i - 1], Tensor))
    ]  # fmt: skip


def gradients(run: Any, flat: Sequence[Any], places: Sequence[int]) -> list[Tensor | None]:
    """Of the sum of all results, each weighted by a fixed random tensor."""
    mine = [a.detach().requires_grad_() if i in places else a for i, a in enumerate(flat)]
    generator = torch.Generator().manual_seed(7)
    results, weights = [], []
    for out in numerics.outputs(run(*mine)):
        if out.requires_grad and out.numel():
            drawn = torch.randn(out.shape, generator=generator)
            results.append(out)
            weights.append(drawn.to(torch.bfloat16).to(out.dtype))
    if not results:
        return [None] * len(places)
    return list(torch.autograd.grad(results, [mine[i] for i in places], weights, allow_unused=True))


def assert_right(
    spec: OpSpec, got: Sequence[Tensor | None], flat: Sequence[Any], places: Sequence[int]
) -> None:
    plain = gradients(spec.reference, flat, places)
    truth = gradients(spec.reference, [numerics.widen(a) for a in flat], places)
    names = [argument.name for argument in spec.op._schema.arguments]
    for i, g, p, t in zip(places, got, plain, truth, strict=True):
        if t is None or p is None:
            assert g is None or not g.any(), names[i]
            continue
        assert g is not None, names[i]
        verdict = numerics.judge(g, p, t, spec.tolerance)
        assert verdict.right, f"{spec.name}, gradient of {names[i]}: {verdict.reason}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("spec", "sample"), samples("typical", "edge", "strided", "zero"))
def test_gradients_against_the_float64_oracle(
    spec: OpSpec, sample: Sample, dtype: torch.dtype
) -> None:
    flat = flat_call(spec, sample, dtype)
    places = learning(flat)
    assert_right(spec, gradients(spec.op, flat, places), flat, places)


@pytest.mark.parametrize(("spec", "sample"), samples("typical", "strided"))
def test_each_gradient_alone_is_right(spec: OpSpec, sample: Sample) -> None:
    """Whatever else is asked for."""
    flat = flat_call(spec, sample, torch.float32)
    for place in learning(flat):
        assert_right(spec, gradients(spec.op, flat, [place]), flat, [place])


@pytest.mark.parametrize(("spec", "sample"), samples("typical"))
def test_gradients_of_gradients(spec: OpSpec, sample: Sample) -> None:
    """create_graph goes back through the reference, whose formulas autograd knows."""
    flat = [numerics.widen(a) for a in flat_call(spec, sample, torch.float32)]
    places = learning(flat)[:2]

    def second(run: Any) -> list[Tensor | None]:
        mine = [a.detach().requires_grad_() if i in places else a for i, a in enumerate(flat)]
        out = sum(o.square().sum() for o in numerics.outputs(run(*mine)) if o.requires_grad)
        leaves = [mine[i] for i in places]
        first = torch.autograd.grad(out, leaves, create_graph=True)
        return list(torch.autograd.grad(sum(g.square().sum() for g in first), leaves))

    for got, expected in zip(second(spec.op), second(spec.reference), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(("spec", "sample"), samples("strided"))
def test_compiled_forward_and_backward(spec: OpSpec, sample: Sample) -> None:
    flat = flat_call(spec, sample, torch.float32)
    places = learning(flat)
    torch._dynamo.reset()
    compiled = torch.compile(spec.op, fullgraph=True, dynamic=True)
    assert_right(spec, gradients(compiled, flat, places), flat, places)
