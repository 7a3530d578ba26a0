"""Every op on a real GPU: each sample, dtype and backend against the float64 oracle on the CPU."""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from flashvl_bench.cases import Case, placed, runner
from flashvl_bench.gpu.target import missing
from flashvl_bench.gpu.timing import capture
from flashvl_kernels import backend, backends, fastest, numerics
from flashvl_kernels.spec import REGISTRY, OpSpec, Sample

if (reason := missing()) is not None:
    pytest.skip(reason, allow_module_level=True)

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
BACKENDS = ("cuda", "triton")


def calls(*kinds: str) -> list[Any]:
    """A pytest parameter for each op, sample of these kinds, and dtype."""
    return [
        pytest.param(spec, sample, dtype, id=f"{spec.name}-{sample.name.replace(' ', '_')}-{name}")
        for spec in REGISTRY.values()
        for sample in spec.samples
        if sample.kind in kinds
        for name, dtype in DTYPES.items()
    ]


def on_gpu(spec: OpSpec, name: str, flat: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments on the GPU, once the backend says that it runs this call."""
    there = placed(flat, "cuda")
    reason = backends.why_not(spec, name, there)
    if reason is not None:
        pytest.skip(reason)
    return there


def assert_right(spec: OpSpec, got: list[Tensor], flat: tuple[Any, ...]) -> None:
    plain, truth = numerics.results(spec, spec.reference, flat), numerics.oracle(spec, flat)
    for i, (g, p, t) in enumerate(zip(got, plain, truth, strict=True)):
        verdict = numerics.judge(g.cpu(), p, t, spec.tolerance)
        assert verdict.right, f"{spec.name}, output {i}: {verdict.reason}"


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize(("spec", "sample", "dtype"), calls("typical", "edge", "strided", "zero"))
def test_against_the_float64_oracle(
    spec: OpSpec, sample: Sample, dtype: torch.dtype, name: str
) -> None:
    flat = Case(spec, sample, dtype).flat()
    there = on_gpu(spec, name, flat)
    with backend(name):
        got = numerics.results(spec, spec.op, there)
        again = numerics.results(spec, spec.op, there)
    torch.cuda.synchronize()
    assert_right(spec, got, flat)
    for first, second, fake in zip(got, again, numerics.outputs(spec.fake(*there)), strict=False):
        assert (first.shape, first.stride()) == (fake.shape, fake.stride())
        assert torch.equal(first.nan_to_num(), second.nan_to_num()), "two runs differ"


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("spec", REGISTRY.values(), ids=lambda s: s.name)
def test_offsets_past_2_to_the_31(spec: OpSpec, name: str) -> None:
    """One test for all of them, because a GPU has to hold the memory in between."""
    for sample in [sample for sample in spec.samples if sample.kind == "far"]:
        flat = Case(spec, sample, torch.bfloat16).flat()
        there = on_gpu(spec, name, flat)
        with backend(name):
            got = [each.cpu() for each in numerics.results(spec, spec.op, there)]
        del there
        torch.cuda.empty_cache()
        assert_right(spec, got, flat)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("spec", REGISTRY.values(), ids=lambda s: s.name)
def test_a_cuda_graph_of_the_call_repeats_it(spec: OpSpec, name: str) -> None:
    for sample in [sample for sample in spec.samples if sample.kind == "typical"]:
        there = on_gpu(spec, name, Case(spec, sample, torch.bfloat16).flat())
        if spec.mutates:
            continue  # `capture` compares results that are not arguments
        with backend(name):
            call = runner(spec, name, there)
            call.run(*there)  # the first of a size brings its tables to the GPU, and waits for them
            graph = capture(call, there)
        assert graph is not None, sample.name


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("spec", REGISTRY.values(), ids=lambda s: s.name)
def test_on_another_stream(spec: OpSpec, name: str) -> None:
    """The kernel waits for what its own stream did before it, and for nothing else."""
    sample = next(sample for sample in spec.samples if sample.kind == "typical")
    flat = Case(spec, sample, torch.float32).flat()
    there = on_gpu(spec, name, flat)
    busy = torch.empty(1 << 28, dtype=torch.uint8, device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), backend(name):
        late = tuple(
            torch.empty_strided(a.shape, a.stride(), dtype=a.dtype, device=a.device)
            if isinstance(a, Tensor)
            else a
            for a in there
        )
        for _ in range(20):
            busy.fill_(1)
        for mine, theirs in zip(late, there, strict=True):
            if isinstance(mine, Tensor):
                mine.copy_(theirs)
        got = numerics.results(spec, spec.op, late)
    stream.synchronize()
    assert_right(spec, got, flat)


def moved(value: Any, device: str) -> Any:
    """A value of a public call with its tensors on `device`."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, tuple | list):
        return type(value)(moved(each, device) for each in value)
    if isinstance(value, dict):
        return {key: moved(each, device) for key, each in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return replace(
            value, **{f.name: moved(getattr(value, f.name), device) for f in fields(value)}
        )
    return value


def refused(spec: OpSpec, sample: Sample, device: str) -> str | None:
    """What the op says to a hostile call on `device`; None where it runs."""
    built = sample.build(torch.float32)
    try:
        spec.function(*moved(built.args, device), **moved(built.kwargs, device))
    except (ValueError, TypeError) as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("spec", REGISTRY.values(), ids=lambda s: s.name)
def test_hostile_calls(spec: OpSpec, name: str) -> None:
    """What shapes tell is an error before a kernel runs. Values on a GPU are not looked at, as that
    would wait for it: there the kernel keeps its hands off memory that is not its own."""
    for sample in [sample for sample in spec.samples if sample.kind == "hostile"]:
        with backend(f"{name},torch"):
            told = refused(spec, sample, "cuda")
        torch.cuda.synchronize()
        if refused(spec, sample, "meta") is None:  # a matter of values
            assert spec.check_values is not None, sample.name
        else:
            assert told is not None, sample.name
            assert re.search(str(sample.error), told), sample.name


@pytest.mark.parametrize("spec", REGISTRY.values(), ids=lambda s: s.name)
def test_auto_takes_the_fastest_that_was_measured(spec: OpSpec) -> None:
    for sample in [sample for sample in spec.samples if sample.kind == "typical"]:
        there = on_gpu(spec, "cuda", Case(spec, sample, torch.bfloat16).flat())
        able = [n for n in fastest.order(spec.name, there) if not backends.why_not(spec, n, there)]
        assert backends.choose(spec, there).backend == able[0]


@pytest.mark.parametrize("spec", REGISTRY.values(), ids=lambda s: s.name)
def test_compiled_whole_graph(spec: OpSpec) -> None:
    sample = next(sample for sample in spec.samples if sample.kind == "typical")
    there = on_gpu(spec, "cuda", Case(spec, sample, torch.bfloat16).flat())

    torch._dynamo.reset()

    def surrounded(*args: Any) -> tuple[Tensor, ...]:
        return tuple(each + 1 for each in numerics.outputs(spec.op(*args)) if each.numel())

    with torch.no_grad():
        expected = surrounded(*numerics.duplicate(there))
        got = torch.compile(surrounded, fullgraph=True, dynamic=True)(*numerics.duplicate(there))
    for g, e in zip(got, expected, strict=True):
        assert g.stride() == e.stride()
        torch.testing.assert_close(g, e, equal_nan=True)
