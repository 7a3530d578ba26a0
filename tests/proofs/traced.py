"""An op's reference as sentryward takes one: a function of a few ATen operators, for one call.

The reference itself is run, with its float tensors and images replaced by `Traced` ones, which
write down what becomes of them. What depends on integers alone (which token an id stands for, which
tiles lie under a position) is worked out by PyTorch on the way and stays behind as constants.
Operators that sentryward does not know are written as others that it does; that both compute the
same is checked on the call's own values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten
FREE = (torch.float32, torch.uint8)
"""Types of tensors that are arguments of the function; others are constants of it."""

LOG2_E = 25380159564675, 2**44
"""A fraction, 1e-14 off: the sum of two floats that nvcc's expf multiplies by, to take 2 to the
power of the product. Such a power is what sentryward makes of it."""


class Unwritten(NotImplementedError):
    """An operator of the reference for which there is no rule here."""


class Traced(Tensor):
    """A tensor with its value, the name that the function gives it, and the function's lines."""

    value: Tensor
    label: str
    lines: list[str]
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, value: Tensor, label: str, lines: list[str]) -> Traced:
        made: Traced = Tensor._make_wrapper_subclass(
            cls, value.shape, strides=value.stride(), dtype=value.dtype, device=value.device
        )
        made.value, made.label, made.lines = value, label, lines
        return made

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        rule = RULES.get(func)
        if rule is None:
            raise Unwritten(f"{func} has no rule in tests/proofs/traced.py")
        made = rule(*args, **(kwargs or {}))
        # A view of all of a tensor is a tensor of its own to PyTorch.
        whole = made is args[0] and not func._schema.is_mutable
        return Traced(made.value, made.label, made.lines) if whole else made


def source(reference: Callable[..., Any], flat: Sequence[Any]) -> tuple[str, list[int]]:
    """Python text that defines `reference`, and the places in `flat` of its arguments."""
    places = [i for i, a in enumerate(flat) if isinstance(a, Tensor) and a.dtype in FREE]
    lines: list[str] = []
    with torch.no_grad():
        expected = reference(*flat)
        given = [Traced(a, f"a{i}", lines) if i in places else a for i, a in enumerate(flat)]
        made = reference(*given)
    results = [r for r in (made if isinstance(made, tuple) else (made,)) if r.numel()]
    expected = [e for e in (expected if isinstance(expected, tuple) else (expected,)) if e.numel()]
    for result, oracle in zip(results, expected, strict=True):
        torch.testing.assert_close(result.value, oracle, rtol=1e-5, atol=1e-6)
    arguments = ", ".join(f"a{i}" for i in places)
    body = "\n".join(f"    {line}" for line in lines)
    returned = "".join(f"{result.label}, " for result in results)
    return (
        # torch.export looks the function's module up, which nobody else has imported.
        "import sys\nimport types\n\nimport torch\n\n\n"
        f"def reference({arguments}):\n{body}\n    return ({returned})\n\n\n"
        "module = types.ModuleType(__name__)\nmodule.__dict__.update(globals())\n"
        "sys.modules[__name__] = module\n"
    ), places


def _text(arg: Any) -> str:
    if isinstance(arg, Traced):
        return arg.label
    if isinstance(arg, (list, tuple)):
        return f"[{', '.join(map(_text, arg))}]"
    return str(arg) if isinstance(arg, torch.dtype) else repr(arg)


def _value(arg: Any) -> Any:
    if isinstance(arg, (list, tuple)):
        return [_value(a) for a in arg]
    return arg.value if isinstance(arg, Traced) else arg


def _lines(arg: Any) -> list[str] | None:
    if isinstance(arg, (list, tuple)):
        return next((found for a in arg if (found := _lines(a)) is not None), None)
    return arg.lines if isinstance(arg, Traced) else None


def emit(func: Any, *args: Any, **kwargs: Any) -> Traced:
    """A line of the function: an operator that sentryward knows."""
    lines = _lines(args)
    assert lines is not None
    made = func(*_value(args), **kwargs)
    name = f"t{len(lines)}"
    named = [f"{key}={_text(value)}" for key, value in kwargs.items()]
    lines.append(f"{name} = torch.ops.{func}({', '.join([*map(_text, args), *named])})")
    return Traced(made, name, lines)


def select(x: Any, axis: int, place: int) -> Any:
    if isinstance(x, Traced):
        return emit(aten.select.int, x, axis, place)
    return x.select(axis, place)


def part(x: Traced, axis: int, start: int, stop: int) -> Traced:
    """x[start:stop] along `axis`."""
    if (start, stop) == (0, x.shape[axis]):
        return x
    return emit(aten.slice.Tensor, x, axis, start, stop)


def joined(parts: list[Traced], axis: int) -> Traced:
    return parts[0] if len(parts) == 1 else emit(aten.cat.default, parts, axis)


def elementwise(func: Any) -> Callable[..., Traced]:
    """A rule of `func` that takes constant tensors apart: sentryward takes only numbers."""

    def rule(*args: Any) -> Traced:
        tensors = [a for a in args if isinstance(a, Tensor)]
        shape = torch.broadcast_shapes(*(t.shape for t in tensors))
        for axis in range(len(shape)):
            runs = _runs(tensors, axis - len(shape), shape[axis])
            if len(runs) > 1:
                pieces = [rule(*(_piece(a, axis - len(shape), *run) for a in args)) for run in runs]
                return joined(pieces, axis)
        # Nothing varies any more: a constant is one number.
        plain = [a.flatten()[0].item() if _constant(a) else a for a in args]
        return func(*plain, shape) if func is _where else emit(func, *plain)

    return rule


def _constant(arg: Any) -> bool:
    return isinstance(arg, Tensor) and not isinstance(arg, Traced)


def _runs(tensors: list[Tensor], axis: int, size: int) -> list[tuple[int, int]]:
    """Of the places along `axis`, which counts from the last one, those between which no constant
    changes."""
    changes = {0, size}
    for tensor in tensors:
        if _constant(tensor) and tensor.dim() >= -axis and tensor.shape[axis] == size > 1:
            changes |= {
                i for i in range(1, size)
                if not torch.equal(tensor.select(axis, i - 1), tensor.select(axis, i))
            }  # fmt: skip
    return list(pairwise(sorted(changes)))


def _piece(arg: Any, axis: int, start: int, stop: int) -> Any:
    """Of a broadcast operand, what meets places [start, stop) of `axis`."""
    if not isinstance(arg, Tensor) or arg.dim() < -axis or arg.shape[axis] == 1:
        return arg
    if isinstance(arg, Traced):
        return part(arg, arg.dim() + axis, start, stop)
    return arg.narrow(axis, start, stop - start)


def _layer_norm(
    x: Traced, shape: list[int], weight: Traced, bias: Traced, eps: float
) -> tuple[Traced, ...]:
    """Over the last axis. Its other results, which no reference takes, are left out."""
    mean = _mean(x, [-1], keepdim=True)
    centred = emit(aten.sub.Tensor, x, mean)
    variance = _mean(emit(aten.mul.Tensor, centred, centred), [-1], keepdim=True)
    root = emit(aten.sqrt.default, emit(aten.add.Tensor, variance, eps))
    scaled = emit(aten.mul.Tensor, emit(aten.div.Tensor, centred, root), weight)
    return emit(aten.add.Tensor, scaled, bias), mean, root


def _where(chosen: bool, yes: Any, no: Any, shape: torch.Size) -> Traced:
    taken, other = (yes, no) if chosen else (no, yes)
    if isinstance(taken, Traced):
        assert taken.shape == shape
        return taken
    zeros = emit(aten.zeros_like.default, other)
    return zeros if taken == 0 else emit(aten.add.Tensor, zeros, taken)


def _silu(x: Traced) -> Traced:
    wide = emit(aten._to_copy.default, x, dtype=torch.float64)  # or the numerator is rounded
    numerator, denominator = LOG2_E
    exponent = emit(aten.div.Tensor, emit(aten.mul.Tensor, wide, -numerator), denominator)
    power = emit(aten.exp2.default, exponent)
    quotient = emit(aten.div.Tensor, wide, emit(aten.add.Tensor, power, 1.0))
    return emit(aten._to_copy.default, quotient, dtype=x.dtype)


def _mean(x: Traced, axes: list[int], keepdim: bool = False) -> Traced:
    """A term for each element: sentryward knows sums over an axis, but not that these are ones."""
    axes = sorted(a % x.dim() for a in axes)
    terms = [x]
    for axis in reversed(axes):
        terms = [select(t, axis, i) for t in terms for i in range(t.shape[axis])]
    total = terms[0]
    for term in terms[1:]:
        total = emit(aten.add.Tensor, total, term)
    mean = emit(aten.div.Tensor, total, len(terms))
    for axis in axes if keepdim else ():
        mean = emit(aten.unsqueeze.default, mean, axis)
    return mean


def _index_select(x: Traced, axis: int, index: Tensor) -> Traced:
    """Runs of neighbours, one after the other."""
    places = index.tolist()
    ends = [i for i, (a, b) in enumerate(pairwise(places), 1) if b != a + 1]
    return joined(
        [
            part(x, axis, places[start], places[stop - 1] + 1)
            for start, stop in pairwise([0, *ends, len(places)])
        ],
        axis,
    )


def _index(x: Traced, indices: list[Tensor | None]) -> Traced:
    for axis, index in enumerate(indices):
        if index is not None:
            assert index.dim() == 1
            x = _index_select(x, axis, index)
    return x


def _unfold(x: Traced, axis: int, size: int, step: int) -> Traced:
    order = [*(a for a in range(x.dim()) if a != axis), axis]
    windows = [
        emit(aten.permute.default, part(x, axis, at, at + size), order)
        for at in range(0, x.shape[axis] - size + 1, step)
    ]
    return emit(aten.stack.default, windows, axis)


def _pad(x: Traced, pad: list[int], value: float = 0) -> Traced:
    """pad: before and after, from the last axis on."""
    assert value == 0
    for i, (before, after) in enumerate(zip(pad[::2], pad[1::2], strict=True)):
        axis = x.dim() - 1 - i
        assert before == 0
        if after:
            shape = [*x.shape[:axis], after, *x.shape[axis + 1 :]]
            x = joined([x, emit(aten.new_zeros.default, x, shape)], axis)
    return x


def _bins(size: int, out: int) -> list[tuple[int, int]]:
    """Of torch.nn.AdaptiveAvgPool2d, along an axis."""
    return [(i * size // out, -(-(i + 1) * size // out)) for i in range(out)]


def _adaptive(x: Traced, out: list[int]) -> Traced:
    rows = []
    for top, bottom in _bins(x.shape[2], out[0]):
        row = part(x, 2, top, bottom)
        cells = [
            _mean(part(row, 3, left, right), [2, 3]) for left, right in _bins(x.shape[3], out[1])
        ]
        rows.append(emit(aten.stack.default, cells, 2))
    return emit(aten.stack.default, rows, 2)


def _slice(
    x: Traced, axis: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Traced:
    begin, stop, step = slice(start, end, step).indices(x.shape[axis])
    if step == 1:
        return part(x, axis, begin, stop)
    return emit(aten.slice.Tensor, x, axis, begin, stop, step)


def _to_copy(x: Traced, *, dtype: torch.dtype | None = None, **_: Any) -> Traced:
    return x if dtype in (None, x.dtype) else emit(aten._to_copy.default, x, dtype=dtype)


def _contiguous(x: Traced, *, memory_format: Any = None) -> Traced:
    """Values stay; where they lie is no part of a reference."""
    return Traced(x.value.contiguous(), x.label, x.lines)


def _reshape(x: Traced, size: list[int], *_: Any) -> Traced:
    made = emit(aten.reshape.default, x, size)
    return Traced(x.value.reshape(size), made.label, made.lines)


def _in_place(rule: Callable[..., Traced]) -> Callable[..., Traced]:
    """The result takes the place of the first argument, which has no views of it."""

    def changed(x: Traced, *args: Any) -> Traced:
        made = rule(x, *args)
        x.value, x.label = made.value, made.label
        return x

    return changed


def _as_is(func: Any) -> Callable[..., Traced]:
    return lambda *args: emit(func, *args)


RULES: dict[Any, Callable[..., Any]] = {
    **{
        func: elementwise(func)
        for func in (aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor)
    },
    **{
        func: _as_is(func)
        for func in (
            aten.neg.default, aten.exp.default, aten.sqrt.default,
            aten.pow.Tensor_Scalar, aten.sum.dim_IntList, aten.select.int,
            aten.permute.default, aten.transpose.int, aten.unsqueeze.default, aten.stack.default,
        )
    },
    aten.where.self: elementwise(_where),
    aten.div_.Tensor: _in_place(elementwise(aten.div.Tensor)),
    aten.sub_.Tensor: _in_place(elementwise(aten.sub.Tensor)),
    aten.silu.default: _silu,
    aten.rsqrt.default: lambda x: emit(aten.reciprocal.default, emit(aten.sqrt.default, x)),
    aten.mean.dim: _mean,
    aten.native_layer_norm.default: _layer_norm,
    aten.new_empty.default: lambda x, size, **_: torch.empty(size, dtype=x.dtype),
    aten.cat.default: lambda parts, axis=0: joined(list(parts), axis % parts[0].dim()),
    aten.index_select.default: _index_select,
    aten.index.Tensor: _index,
    aten.unfold.default: _unfold,
    aten.constant_pad_nd.default: _pad,
    aten._adaptive_avg_pool2d.default: _adaptive,
    aten.slice.Tensor: _slice,
    aten.split.Tensor: lambda x, size, axis=0: [
        part(x, axis % x.dim(), at, min(at + size, x.shape[axis]))
        for at in range(0, x.shape[axis], size)
    ],
    aten.unbind.int: lambda x, axis=0: [select(x, axis, i) for i in range(x.shape[axis])],
    aten._to_copy.default: _to_copy,
    aten.clone.default: _contiguous,
    aten.view.default: _reshape,
    aten._unsafe_view.default: _reshape,
    aten._reshape_alias.default: _reshape,
    aten.alias.default: lambda x: x,
    aten.detach.default: lambda x: x,
}  # fmt: skip
