"""fp32 products in bf16 where PyTorch's setting allows it: right by the bound of bf16, exactly the
products of rounded numbers, followed call by call, told, and without effect where it is not set or
the CPU has nothing to gain."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import flashvl_kernels as fvk
from flashvl.train.loop import fp32_products as setting
from flashvl_kernels import extension, numerics, precision
from flashvl_kernels.spec import REGISTRY, OpSpec, Sample
from tests.ops.test_backward import flat_call, gradients, learning

ALLOWED = ("typical", "edge", "strided")
FORWARD = [(REGISTRY[name], sample) for name in precision.PRODUCTS
           for sample in REGISTRY[name].samples if sample.kind in ALLOWED]  # fmt: skip
BACKWARD = [(REGISTRY[name], sample)
            for name in ("linear", "swiglu_mlp", "tile_attention", "causal_attention")
            for sample in REGISTRY[name].samples if sample.kind in ALLOWED]  # fmt: skip
TOLD = "products may be in bf16"
HERE = precision.has_bf16_products()

needs_bf16 = pytest.mark.skipif(
    not HERE, reason=f"level {extension.cpu_level()} has no products of bf16"
)
needs_extension = pytest.mark.skipif(
    not extension.EXTENSION.loaded, reason=extension.EXTENSION.reason
)


@pytest.fixture
def allowed() -> Iterator[None]:
    with setting("medium"):
        yield


def ids(cases: list[tuple[OpSpec, Sample]]) -> list[str]:
    return [f"{spec.name}-{sample.name.replace(' ', '_')}" for spec, sample in cases]


def assert_as_bf16(spec: OpSpec, got: Any, plain: Any, truth: Any) -> None:
    """fp32 results, as right as those of the plain expression in bf16."""
    for g, p, t in zip(got, plain, truth, strict=True):
        if t is None or p is None:
            continue
        verdict = numerics.judge(g, p.float(), t, spec.tolerance)
        assert verdict.right, verdict.reason


@needs_extension
@pytest.mark.usefixtures("allowed")
@pytest.mark.parametrize(("spec", "sample"), FORWARD, ids=ids(FORWARD))
def test_results_by_the_bound_of_bf16(spec: OpSpec, sample: Sample) -> None:
    flat = flat_call(spec, sample, torch.float32)
    got = numerics.results(spec, spec.op, flat)
    plain = numerics.results(spec, spec.reference, flat_call(spec, sample, torch.bfloat16))
    assert_as_bf16(spec, got, plain, numerics.oracle(spec, flat))


@needs_extension
@pytest.mark.usefixtures("allowed")
@pytest.mark.parametrize(("spec", "sample"), BACKWARD, ids=ids(BACKWARD))
def test_gradients_by_the_bound_of_bf16(spec: OpSpec, sample: Sample) -> None:
    flat = flat_call(spec, sample, torch.float32)
    places = learning(spec, flat)
    got = gradients(spec.op, flat, places)
    plain = gradients(spec.reference, flat_call(spec, sample, torch.bfloat16), places)
    truth = gradients(spec.reference, [numerics.widen(a) for a in flat], places)
    assert_as_bf16(spec, got, plain, truth)


SHAPES = ((333, 150, 70), (700, 129, 257), (64, 1, 3), (97, 512, 33), (32, 33, 16))


def drawn(rows: int, columns: int, outputs: int) -> tuple[Tensor, Tensor, Tensor]:
    """x [M, K], w [N, K] and dy [M, N] in numbers that bf16 does not have."""
    m = torch.Generator().manual_seed(rows)
    x, dy = (torch.randn(rows, n, generator=m) for n in (columns, outputs))
    return x, torch.randn(outputs, columns, generator=m) * columns**-0.5, dy


def product_and_gradients(x: Tensor, w: Tensor, dy: Tensor) -> list[Tensor]:
    x, w = x.clone().requires_grad_(), w.clone().requires_grad_()
    y = fvk.linear(x, w)
    return [y.detach(), *torch.autograd.grad(y, (x, w), dy)]


def exactly(x: Tensor, w: Tensor, dy: Tensor) -> list[Tensor]:
    return [x @ w.T, dy @ w, dy.T @ x]


@needs_bf16
@pytest.mark.parametrize(("rows", "columns", "outputs"), SHAPES)
def test_the_products_are_those_of_rounded_numbers(rows: int, columns: int, outputs: int) -> None:
    """To the last places of fp32: sums are not rounded. Unset, they are those of the numbers."""
    given = drawn(rows, columns, outputs)
    exact = exactly(*(a.double() for a in given))
    rounded = exactly(*(a.bfloat16().double() for a in given))
    plain = exactly(*given)
    for name, near, far in (("highest", exact, rounded), ("medium", rounded, exact)):
        with setting(name):
            got = product_and_gradients(*given)
        for g, n, f, p, e in zip(got, near, far, plain, exact, strict=True):
            bound = 2 * (p - e).abs().max() + 1e-6 * n.abs().max()
            assert (g - n).abs().max() <= bound
            assert (g - f).abs().max() > 20 * bound


@needs_bf16
def test_the_newer_setting_is_followed_too() -> None:
    given = drawn(64, 96, 48)
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    try:
        newer = product_and_gradients(*given)
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = "none"
    with setting("medium"):
        older = product_and_gradients(*given)
    exact = product_and_gradients(*given)
    assert all(map(torch.equal, newer, older))
    assert not any(map(torch.equal, newer, exact))


@needs_bf16
@pytest.mark.usefixtures("allowed")
def test_what_it_does_not_name_stays_fp32() -> None:
    """Few rows, weights that are no longer small, and bf16 numbers; between them what it names."""
    x, w, _ = drawn(31, 64, 32)
    calls: list[tuple[Callable[[], Tensor], bool]] = [
        (lambda: fvk.linear(x, w), True),
        (lambda: fvk.linear(torch.cat((x, x)), w), False),
        (lambda: fvk.linear(torch.cat((x, x)), w.repeat(600, 1)), True),
        (lambda: fvk.linear(torch.cat((x, x)).bfloat16(), w.bfloat16()), True),
    ]
    for call, same in calls:
        got = call()
        with setting("highest"):
            assert torch.equal(got, call()) == same


@needs_extension
@pytest.mark.skipif(HERE, reason="this CPU gains from it")
def test_where_nothing_is_gained_the_setting_changes_nothing() -> None:
    given = drawn(64, 96, 48)
    exact = product_and_gradients(*given)
    with setting("medium"):
        assert all(map(torch.equal, product_and_gradients(*given), exact))
        assert TOLD not in fvk.explain("linear", *given[:2]).kernel


@needs_bf16
def test_it_is_told() -> None:
    x, w, dy = drawn(64, 96, 48)
    with setting("medium"), fvk.watch_backward() as seen:
        product_and_gradients(x, w, dy)
        assert TOLD in fvk.explain("linear", x, w).kernel
        assert TOLD not in fvk.explain("linear", x.bfloat16(), w.bfloat16()).kernel
        assert TOLD not in fvk.explain("rms_norm", x, torch.ones(96)).kernel
    assert seen == ["linear: by hand (CPU kernel linear_backward in bf16)"]
    assert TOLD not in fvk.explain("linear", x, w).kernel


@needs_bf16
def test_a_compiled_call_follows() -> None:
    x, w, _ = drawn(64, 96, 48)
    compiled = torch.compile(lambda: fvk.linear(x, w), backend="aot_eager")
    exact = compiled()
    with setting("medium"):
        assert torch.equal(compiled(), fvk.linear(x, w))
        assert not torch.equal(compiled(), exact)
