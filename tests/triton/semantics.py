"""Runs Triton kernels on CPU tensors, from the IR that Triton's own frontend produces.

`executed()` replaces the launch of every kernel: it is specialised and compiled to TTIR as a
launch on an H100 would be, and that IR is executed by ttsem with CUDA semantics, one program after
the other, on the tensors' own memory. Nothing is copied, so a tensor with offsets past 2^31 costs
only the pages it touches. Each launch raises `Fault` on

- an access outside the elements that the tensor arguments span (not merely their storage),
- a race between two programs, and an operation with an undefined result,

and outputs that nobody wrote hold NaN. `ttsem.sanitize` does the same with whole copies of the
storages and a full compile to machine code a launch, which takes ten times as long.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor


def missing() -> str | None:
    """Why kernels cannot be executed here; None where they can."""
    for name in ("triton", "ttsem"):
        if find_spec(name) is None:
            return f"{name} is not installed; `make setup` installs what the Triton tests need"
    if not metadata.version("triton").startswith("3.8."):
        return f"triton is {metadata.version('triton')}; ttsem reads the IR of 3.8 (`make setup`)"
    return None


if reason := missing():
    pytest.skip(reason, allow_module_level=True)

import ttsem  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler.compiler import ASTSource, make_backend  # noqa: E402
from triton.runtime.jit import JITFunction, create_function_from_signature  # noqa: E402
from ttsem import mlir, pidraces, values  # noqa: E402

from flashvl_kernels import numerics  # noqa: E402
from flashvl_kernels.spec import OpSpec  # noqa: E402

TARGET = GPUTarget("cuda", 90, 32)


class Fault(Exception):
    """A launch that a GPU might have let pass: the kernel, its source line, and what it did."""


def specialise(
    kernel: JITFunction, target: GPUTarget, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[ASTSource, Any, dict[str, Any]]:
    """The source and options that a launch with these arguments compiles, and its arguments by
    name; the steps of `JITFunction.run` in Triton 3.8."""
    backend = make_backend(target)
    binder = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, options = binder(*args, **kwargs)
    packed = kernel._pack_args(backend, kwargs, bound, specialization, options)
    options, signature, constexprs, attrs = packed
    return ASTSource(kernel, signature, constexprs, attrs), options, bound


def _ttir(source: ASTSource, options: Any) -> str:
    """The module after the TTIR stage, printed in MLIR's generic form."""
    from triton._C.libtriton import ir

    backend = make_backend(TARGET)
    options = backend.parse_options(dict(options.__dict__, **source.parse_options()))
    stages: dict[str, Any] = {}
    backend.add_stages(stages, options, source.language)
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    module = source.make_ir(
        TARGET,
        options,
        backend.get_codegen_implementation(options),
        backend.get_module_map(),
        context,
    )
    module = stages["ttir"](module, {"target": TARGET, **options.__dict__})
    mlir.enable_generic_printing()
    return str(module)


_PARSED: dict[str, Any] = {}


def _module(source: ASTSource, options: Any) -> Any:
    """The parsed module; one compile for all launches of one specialisation."""
    key = source.hash() + str(sorted(options.__dict__.items(), key=operator.itemgetter(0)))
    if key not in _PARSED:
        _PARSED[key] = mlir.parse(_ttir(source, options))
    return _PARSED[key]


def _spans(tensors: list[Tensor]) -> dict[int, np.ndarray]:
    """Address and bytes of what the tensors span, those in one storage joined."""
    spans: dict[int, tuple[int, int]] = {}
    for tensor in tensors:
        if tensor.numel() == 0:
            continue
        reach = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
        first, last = tensor.data_ptr(), tensor.data_ptr() + (reach + 1) * tensor.element_size()
        key = tensor.untyped_storage().data_ptr()
        low, high = spans.get(key, (first, last))
        spans[key] = (min(low, first), max(high, last))
    memory = {}
    for tensor in tensors:
        key = tensor.untyped_storage().data_ptr()
        if key in spans:
            low, high = spans.pop(key)
            storage = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
            memory[low] = storage[low - key : high - key].numpy()
    return memory


_LINE = re.compile(r'"([^"]+\.py)":(\d+):')


def _where(kernel: JITFunction, op: str) -> str:
    found = _LINE.search(op)
    if found is None:
        return f"{kernel.__name__}: {op[:200]}"
    with open(found[1]) as file:
        text = file.read().splitlines()[int(found[2]) - 1].strip()
    return f"{kernel.__name__}, line {found[2]}, `{text}`"


def _op_of(error: BaseException) -> str:
    notes = getattr(error, "__notes__", [])
    return next((n for n in notes if n.startswith("while evaluating ")), "")


def _execute(
    kernel: JITFunction, grid: tuple[int, int, int], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    source, options, bound = specialise(kernel, TARGET, args, kwargs)
    module = _module(source, options)
    (function,) = (name for name in module.funcs if name == kernel.__name__)
    parameters = [name for name, kind in source.signature.items() if kind != "constexpr"]
    types = [kind for _, kind in module.funcs[function].regions[0].blocks[0].args]

    memory = ttsem.Memory()
    for address, raw in _spans(
        [bound[n] for n in parameters if isinstance(bound[n], Tensor)]
    ).items():
        memory.register(address, raw)
    memory.trace()
    call = [
        np.array(value.data_ptr(), dtype=np.int64)
        if isinstance(value := bound[name], Tensor)
        else values.cast_to(np.asarray(value), kind)
        for name, kind in zip(parameters, types, strict=True)
    ]
    interpreter = ttsem.Interp(module, memory, grid)
    try:
        interpreter.run_grid(function, call)
    except ttsem.MemoryFault as error:
        what = f"{error.kind} outside every tensor at {len(error.addrs)} addresses"
        raise Fault(f"{_where(kernel, _op_of(error))}: {what}") from None
    except ttsem.Poison as error:
        raise Fault(f"{_where(kernel, _op_of(error))}: undefined result: {error}") from None
    _look_for_races(kernel, memory)


def _look_for_races(kernel: JITFunction, memory: Any) -> None:
    if memory.access_overflow:
        spans = memory.access_spans
        if spans.overflow or pidraces.spans_may_race(spans.lo, spans.hi, spans.who, spans.write):
            raise Fault(f"{kernel.__name__}: too large to be checked for races; use a smaller call")
        return
    race = pidraces.find_race(memory.access_log)
    if race is not None:
        (one, _, first), (two, _, second) = race.first, race.second
        places = f"{_where(kernel, first)} and {_where(kernel, second)}"
        raise Fault(f"{race.kind} race between programs {one} and {two}: {places}")


@contextmanager
def executed() -> Iterator[list[str]]:
    """Every launch inside is executed here; yields the names of the kernels launched."""
    launched: list[str] = []

    def run(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        size = grid(kwargs) if callable(grid) else grid
        x, y, z = (*size, 1, 1)[:3]
        launched.append(kernel.__name__)
        _execute(kernel, (x, y, z), args, kwargs)

    with replaced_launch(run), numerics.poisoned():
        yield launched


@contextmanager
def replaced_launch(run: Any) -> Iterator[None]:
    """`run` in place of `JITFunction.run`."""
    original = JITFunction.run
    JITFunction.run = run
    try:
        yield
    finally:
        JITFunction.run = original


def wrong(spec: OpSpec, flat: tuple[Any, ...], got: list[Tensor]) -> str:
    """What is wrong with a kernel's results by the rule of `numerics.judge`; empty if nothing."""
    refused = numerics.refusal(spec, *beside_the_oracle(spec, flat, got))
    return f"wrong: {spec.name}, {refused}" if refused else ""


def beside_the_oracle(
    spec: OpSpec, flat: tuple[Any, ...], got: list[Tensor]
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    return got, numerics.results(spec, spec.reference, flat), numerics.oracle(spec, flat)


def rounds_otherwise(spec: OpSpec, share: float, flat: tuple[Any, ...], got: list[Tensor]) -> str:
    """Whether fewer than `share` of the elements are bit-equal to the plain expression's.

    The oracle cannot see a cast that is left out, since that is more exact; the models were trained
    with it (Hugging Face's order). One more or less moves a tenth of the elements of a bf16 result;
    another order of a sum in fp32, or an approximate rsqrt, moves less than one in a hundred.
    """
    for i, (mine, plain) in enumerate(
        zip(got, numerics.results(spec, spec.reference, flat), strict=True)
    ):
        equal = float((mine == plain).double().mean()) if mine.numel() else 1.0
        if equal < share:
            return f"rounding: {spec.name}, output {i}: {equal:.4f} of the elements are bit-equal"
    return ""
