"""Every op, through everything PyTorch asks of one: generated from the registry."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

import flashvl_kernels
from flashvl_kernels import extension, numerics, triton
from flashvl_kernels.backends import backend, why_not
from flashvl_kernels.shapes import meta_call
from flashvl_kernels.spec import REGISTRY, OpSpec, Sample, capture

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
OPS = {
    "rms_norm", "layer_norm", "swiglu", "linear", "swiglu_mlp", "gelu_mlp", "rope_qkv",
    "tile_attention", "stitched_tile_attention", "causal_attention", "decode_attention",
    "compress_tokens", "stitch_tiles", "image_to_patches", "merge_image_tokens", "argmax_head",
}  # fmt: skip


def samples(*kinds: str) -> list[Any]:
    """A pytest parameter for each op and sample of these kinds."""
    return [
        pytest.param(spec, sample, id=f"{spec.name}-{sample.name.replace(' ', '_')}")
        for spec in REGISTRY.values()
        for sample in spec.samples
        if sample.kind in kinds
    ]


def flat_call(spec: OpSpec, sample: Sample, dtype: torch.dtype, draw: int = 0) -> tuple[Any, ...]:
    built = sample.build(dtype, draw=draw)
    found, flat = capture(spec.function, *built.args, **built.kwargs)
    assert found is spec, f"the sample of {spec.name} ends in {found.name}"
    return flat


def assert_right(
    spec: OpSpec, run: Callable[..., Any], sample: Sample, dtype: torch.dtype, what: str
) -> None:
    def drawn(draw: int) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        flat = flat_call(spec, sample, dtype, draw)
        plain, truth = numerics.results(spec, spec.reference, flat), numerics.oracle(spec, flat)
        return numerics.results(spec, run, flat), plain, truth

    more = partial(flat_call, spec, sample, dtype)
    why = numerics.refusal_over_draws(spec, drawn, more)
    assert not why, f"{spec.name}, {what}, {why}"


def kernels(spec: OpSpec) -> Iterator[str]:
    """The backends beyond the reference that the op claims and this machine can run."""
    return (name for name in spec.kernels if why_not(spec, name, ()) is None)


def test_all_ops_of_the_design_are_there_and_public() -> None:
    assert set(REGISTRY) >= OPS
    for name in OPS:
        assert getattr(flashvl_kernels, name) is REGISTRY[name].function
        assert name in flashvl_kernels.__all__


def test_the_extension_is_loaded() -> None:
    assert extension.EXTENSION.loaded, extension.EXTENSION.reason


@pytest.mark.parametrize("spec", REGISTRY.values(), ids=lambda s: s.name)
def test_an_op_has_every_backend_it_claims(spec: OpSpec) -> None:
    for name in spec.kernels:
        if name == "triton" and triton.missing() is not None:
            pytest.skip(f"the triton kernel is not looked at: {triton.missing()}")
        assert callable(spec.kernel(name).run)


@pytest.mark.parametrize("spec", REGISTRY.values(), ids=lambda s: s.name)
def test_an_op_has_samples_of_every_kind(spec: OpSpec) -> None:
    kinds = [sample.kind for sample in spec.samples]
    # An image without pixels is an error, so an op that takes one has no zero-size call.
    zero = 0 if spec.name == "image_to_patches" else 1
    needed = {"typical": 2, "edge": 2, "strided": 1, "zero": zero, "hostile": 3, "bench": 1}
    for kind, least in needed.items():
        assert kinds.count(kind) >= least, f"{spec.name} has too few {kind} samples"
    assert len({sample.name for sample in spec.samples}) == len(spec.samples)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("spec", "sample"), samples("typical", "edge", "strided", "zero"))
def test_kernels_against_the_float64_oracle(
    spec: OpSpec, sample: Sample, dtype: torch.dtype
) -> None:
    flat = flat_call(spec, sample, dtype)
    for name in kernels(spec):
        if spec.kernels[name](*flat) is None:
            assert_right(spec, spec.kernel(name).run, sample, dtype, name)
    with backend("torch"):
        assert_right(spec, spec.op, sample, dtype, "torch")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("spec", "sample"), samples("typical"))
def test_the_reference_itself_is_accurate(spec: OpSpec, sample: Sample, dtype: torch.dtype) -> None:
    """At most 16 unit roundoffs of the output's size: the longest op rounds six times in a row."""
    flat = flat_call(spec, sample, dtype)
    plain, truth = numerics.results(spec, spec.reference, flat), numerics.oracle(spec, flat)
    for got, expected in zip(plain, truth, strict=True):
        if got.is_floating_point() and expected.numel():
            error = (got.double() - expected).square().mean().sqrt()
            allowed = 16 * numerics.UNIT_ROUNDOFF[dtype] * expected.square().mean().sqrt()
            assert error <= allowed, f"{spec.name}: {error:.3g} of {allowed:.3g}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("spec", "sample"), samples("typical", "edge", "strided", "zero"))
def test_the_fake_has_the_real_strides(spec: OpSpec, sample: Sample, dtype: torch.dtype) -> None:
    """Compiled code trusts the fake's strides; opcheck does not compare them on the CPU."""
    flat = flat_call(spec, sample, dtype)
    fakes = numerics.outputs(spec.fake(*flat))
    for name in ("torch", *kernels(spec)):
        with backend(f"{name},torch"):
            reals = numerics.outputs(spec.op(*(numerics.duplicate(flat) if spec.mutates else flat)))
        for real, fake in zip(reals, fakes, strict=True):
            assert (real.shape, real.dtype) == (fake.shape, fake.dtype)
            assert real.stride() == fake.stride()
            assert real.is_contiguous()


@pytest.mark.parametrize(("spec", "sample"), samples("typical", "strided", "zero"))
def test_opcheck(spec: OpSpec, sample: Sample) -> None:
    flat = flat_call(spec, sample, torch.float32)
    floats = [
        a.detach().requires_grad_() if differentiable(spec, a) else a
        for a in numerics.duplicate(flat)
    ]
    with backend("torch"):
        report = torch.library.opcheck(spec.op, tuple(floats), raise_exception=True)
    assert set(report) == {
        "test_schema", "test_autograd_registration", "test_faketensor",
        "test_aot_dispatch_dynamic",
    }  # fmt: skip


def differentiable(spec: OpSpec, arg: Any) -> bool:
    return (
        isinstance(arg, Tensor)
        and arg.is_floating_point()
        and spec.differentiable
        and not spec.mutates
    )


@pytest.mark.parametrize(("spec", "sample"), samples("strided"))
def test_compiled_whole_graph_with_dynamic_shapes(spec: OpSpec, sample: Sample) -> None:
    built = sample.build(torch.float32)
    flat = flat_call(spec, sample, torch.float32)

    def surrounded(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return tree_map(lambda t: t + 1, spec.function(*args, **kwargs))

    torch._dynamo.reset()
    compiled = torch.compile(surrounded, fullgraph=True, dynamic=True)
    got = numerics.outputs(compiled(built.args, built.kwargs))
    again = sample.build(torch.float32)
    expected = numerics.outputs(surrounded(again.args, again.kwargs))
    assert len(flat) and len(got) == len(expected)
    for g, e in zip(got, expected, strict=True):
        assert g.stride() == e.stride()
        torch.testing.assert_close(g, e, equal_nan=True)


@pytest.mark.parametrize(("spec", "sample"), samples("typical"))
def test_gradients_against_finite_differences(spec: OpSpec, sample: Sample) -> None:
    if spec.mutates or not spec.differentiable:
        pytest.skip(f"{spec.name} has no gradient: it writes in place or reads integers only")
    flat = [numerics.widen(a) for a in flat_call(spec, sample, torch.float32)]
    places = [i for i, a in enumerate(flat) if isinstance(a, Tensor) and a.is_floating_point()]
    leaves = [flat[i].detach().clone().requires_grad_() for i in places]

    def run(*tensors: Tensor) -> Any:
        full = list(flat)
        for i, tensor in zip(places, tensors, strict=True):
            full[i] = tensor
        return tuple(o for o in numerics.outputs(spec.op(*full)) if o.is_floating_point())

    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)


@pytest.mark.parametrize(("spec", "sample"), samples("hostile"))
def test_hostile_calls_raise_a_clear_error(spec: OpSpec, sample: Sample) -> None:
    built = sample.build(torch.float32)
    with pytest.raises((ValueError, TypeError), match=sample.error):
        spec.function(*built.args, **built.kwargs)


@pytest.mark.parametrize(("spec", "sample"), samples("far"))
def test_offsets_past_2_to_the_31(spec: OpSpec, sample: Sample) -> None:
    flat = flat_call(spec, sample, torch.bfloat16)
    near = tuple(a.contiguous() if isinstance(a, Tensor) else a for a in flat)
    for name in ("torch", *kernels(spec)):
        with backend(f"{name},torch"):
            for far, expected in zip(
                numerics.outputs(spec.op(*flat)), numerics.outputs(spec.op(*near)), strict=True
            ):
                assert torch.equal(far, expected)


@pytest.mark.parametrize(("spec", "sample"), samples("typical"))
def test_autocast_runs_in_the_autocast_dtype(spec: OpSpec, sample: Sample) -> None:
    if spec.mutates:
        pytest.skip(f"{spec.name} writes into the caller's tensors, whose dtype is fixed")
    flat = flat_call(spec, sample, torch.float32)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        got = numerics.outputs(spec.op(*flat))
    half = [a.bfloat16() if differentiable(spec, a) else a for a in flat]
    for i in spec._kept:
        half[i] = flat[i]
    with torch.no_grad():
        for g, expected in zip(got, numerics.outputs(spec.op(*half)), strict=True):
            assert g.dtype == expected.dtype
            assert torch.equal(g, expected)


@pytest.mark.parametrize(("spec", "sample"), samples("typical"))
def test_meta_tensors_give_shapes(spec: OpSpec, sample: Sample) -> None:
    """A plain call, as of a model that has no memory yet."""
    flat = meta_call(spec, sample, torch.bfloat16)
    outputs = numerics.outputs(spec(*flat))
    assert all(output.is_meta for output in outputs)
    assert [o.shape for o in outputs] == [f.shape for f in numerics.outputs(spec.fake(*flat))]
