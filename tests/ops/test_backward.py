"""Hand-written backward passes: gradients of every sample against those of the float64 reference,
under the rule of the results; what needs no gradient costs nothing; gradients of gradients."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import flashvl_kernels as fvk
from flashvl_kernels import extension, numerics
from flashvl_kernels.backends import backend
from flashvl_kernels.spec import REGISTRY, OpSpec, Sample, capture

ROOT = Path(__file__).resolve().parents[2]
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


def learning(spec: OpSpec, flat: Sequence[Any]) -> list[int]:
    """Where the arguments that mostly have a gradient stand: floats, but no scales or tables."""
    return [
        i
        for i, a in enumerate(flat)
        if isinstance(a, Tensor) and a.is_floating_point() and i not in spec._kept
    ]


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
    places = learning(spec, flat)
    assert_right(spec, gradients(spec.op, flat, places), flat, places)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("spec", "sample"), samples("typical"))
def test_the_formulas_on_pytorchs_own_ops(spec: OpSpec, sample: Sample, dtype: torch.dtype) -> None:
    """What compiled graphs, other devices and a CPU without the extension run."""
    flat = flat_call(spec, sample, dtype)
    places = learning(spec, flat)
    with backend("torch"):
        assert_right(spec, gradients(spec.op, flat, places), flat, places)


@pytest.mark.parametrize(("spec", "sample"), samples("typical", "strided"))
def test_each_gradient_alone_is_right(spec: OpSpec, sample: Sample) -> None:
    """Whatever else is asked for: other kernels may run then."""
    flat = flat_call(spec, sample, torch.float32)
    for place in learning(spec, flat):
        assert_right(spec, gradients(spec.op, flat, [place]), flat, [place])


class Called(TorchDispatchMode):
    """The names of all ops called meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_tables_that_learn_go_back_through_the_reference() -> None:
    spec = REGISTRY["rope_qkv"]
    flat = flat_call(spec, spec.samples[0], torch.float32)
    assert_right(spec, gradients(spec.op, flat, [0, 1, 2]), flat, [0, 1, 2])


@pytest.mark.parametrize(
    ("wanted", "products"),
    [("x", 1), ("w_data", 1), ("bias", 0), ("residual", 0), ("norm_weight", 1)],
)
def test_what_needs_no_gradient_costs_no_product(wanted: str, products: int) -> None:
    spec = REGISTRY["linear"]
    assert spec.backward is not None
    names = [argument.name for argument in spec.op._schema.arguments]
    x, w, bias, residual = (torch.randn(*s) for s in ((9, 8), (4, 8), (4,), (9, 4)))
    flat = (x, w, None, "bf16", 8, bias, None, residual, torch.ones(8), None, 1e-6)
    with torch.no_grad(), Called() as called:
        found = spec.backward(tuple(n == wanted for n in names), (torch.randn(9, 4),), *flat)
    assert found[names.index(wanted)] is not None
    assert sum(name.startswith("aten.mm") for name in called.names) == products


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_threads(spec: OpSpec) -> None:
    """Right with any number of them, and the same bits each time."""
    sample = max(
        (s for s in spec.samples if s.kind in ("typical", "edge") and "NaN" not in s.name),
        key=lambda s: flat_call(spec, s, torch.float32)[0].numel(),
    )
    flat = flat_call(spec, sample, torch.float32)
    places = learning(spec, flat)
    before = torch.get_num_threads()
    try:
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            got = gradients(spec.op, flat, places)
            assert_right(spec, got, flat, places)
            for g, again in zip(got, gradients(spec.op, flat, places), strict=True):
                assert g is None or torch.equal(g, again)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("spec", "sample"), samples("far"))
def test_offsets_past_2_to_the_31(spec: OpSpec, sample: Sample) -> None:
    flat = flat_call(spec, sample, torch.float32)
    near = [a.contiguous() if isinstance(a, Tensor) else a for a in flat]
    places = learning(spec, flat)
    for far, expected in zip(
        gradients(spec.op, flat, places), gradients(spec.op, near, places), strict=True
    ):
        assert (far is None) == (expected is None)
        assert far is None or torch.equal(far, expected)


@pytest.mark.parametrize(("spec", "sample"), samples("typical"))
def test_gradients_of_gradients(spec: OpSpec, sample: Sample) -> None:
    """create_graph goes back through the reference, whose formulas autograd knows; not those of
    PyTorch's attention on CPUs, as it says itself."""
    flat = [numerics.widen(a) for a in flat_call(spec, sample, torch.float32)]
    places = learning(spec, flat)[:2]

    def second(run: Any) -> list[Tensor | None]:
        mine = [a.detach().requires_grad_() if i in places else a for i, a in enumerate(flat)]
        out = sum(o.square().sum() for o in numerics.outputs(run(*mine)) if o.requires_grad)
        leaves = [mine[i] for i in places]
        first = torch.autograd.grad(out, leaves, create_graph=True)
        return list(torch.autograd.grad(sum(g.square().sum() for g in first), leaves))

    if "attention" in spec.name:
        with pytest.raises(RuntimeError, match=r"derivative for .* is not implemented"):
            second(spec.op)
        return
    for got, expected in zip(second(spec.op), second(spec.reference), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(("spec", "sample"), samples("strided"))
def test_compiled_forward_and_backward(spec: OpSpec, sample: Sample) -> None:
    flat = flat_call(spec, sample, torch.float32)
    places = learning(spec, flat)
    torch._dynamo.reset()
    compiled = torch.compile(spec.op, fullgraph=True, dynamic=True)
    assert_right(spec, gradients(compiled, flat, places), flat, places)


@pytest.mark.parametrize("level", ["scalar", "avx2", "avx512"])
def test_lower_levels(level: str) -> None:
    """Typical and strided samples at a level read once a process: this file, as a program."""
    if level not in extension.available_levels():
        pytest.skip(f"this CPU or build has no level {level}")
    environment = {**os.environ, "FLASHVL_CPU_LEVEL": level, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, __file__], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 3 * len(SPECS)


def main() -> None:
    count = 0
    for spec in SPECS:
        for sample in spec.samples:
            if sample.kind in ("typical", "strided"):
                for dtype in DTYPES:
                    flat = flat_call(spec, sample, dtype)
                    places = learning(spec, flat)
                    assert_right(spec, gradients(spec.op, flat, places), flat, places)
                    count += 1
    print(count)


@pytest.mark.skipif(not extension.EXTENSION.loaded, reason=extension.EXTENSION.reason)
def test_how_gradients_came_back_is_told() -> None:
    """By hand on a kernel or on PyTorch's ops, or through the reference; outside of the block
    nobody listens, and on the torch backend autograd has the plain expressions themselves."""
    w = fvk.pack(torch.randn(8, 16).bfloat16(), "bf16")
    x = torch.randn(2, 64, 16, dtype=torch.bfloat16, requires_grad=True)

    def passes() -> None:
        pooled = fvk.compress_tokens(x, fvk.Compression("average", 2), size=(8, 8))
        fvk.rms_norm(fvk.linear(pooled, w), torch.ones(8).bfloat16())[0].sum().backward()

    passes()
    with fvk.watch_backward() as seen, fvk.watch_backward() as too:
        passes()
    told = [
        "rms_norm: by hand (CPU kernel norm_backward)",
        "linear: by hand (PyTorch's ops)",
        "compress_tokens: recomputed through the reference",
    ]
    assert seen == too == told
    passes()
    assert len(seen) == 3
    with fvk.watch_backward() as seen, backend("torch"):
        passes()
    assert seen == []


if __name__ == "__main__":
    main()
