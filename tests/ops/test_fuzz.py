"""Fuzzed calls of the public functions: the right result or a ValueError or TypeError, never a
crash.

A call starts from one of the op's samples and is changed: sizes (everywhere they occur, so that the
call stays whole, or in one tensor), strides, offsets, dtypes, the values of integer tensors, and
numbers. The calls run in a process of their own. Before each one it writes down the call's number,
so that a crash is a failure that names it; `python tests/ops/test_fuzz.py SEED NUMBER 1` runs that
one again.

FLASHVL_FUZZ_CALLS (400; `make fuzz` 10,000) and FLASHVL_FUZZ_SEED (0).
"""

from __future__ import annotations

import dataclasses
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flashvl_kernels import extension, numerics
from flashvl_kernels.backends import why_not
from flashvl_kernels.spec import REGISTRY, Call, Maker, OpSpec, capture

ROOT = Path(__file__).resolve().parents[2]
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
KINDS = ("typical", "edge", "strided", "zero", "hostile")
NUMBERS: tuple[Any, ...] = (0, 1, -1, 2, 7, 1 << 40, 0.0, 1.5, -3.0, float("nan"), float("inf"))
LARGEST = 1 << 22  # elements of a changed tensor
REFUSALS = (ValueError, TypeError)

Change = Callable[[random.Random, list[Any]], None]


def flatten(value: Any, leaves: list[Any]) -> Any:
    """Collects tensors and numbers out of tuples, lists, dicts and dataclasses; returns a function
    that puts changed ones back."""
    if isinstance(value, tuple | list):
        parts = [flatten(item, leaves) for item in value]
        return lambda new: type(value)([part(new) for part in parts])
    if isinstance(value, dict):
        named = {key: flatten(item, leaves) for key, item in value.items()}
        return lambda new: {key: part(new) for key, part in named.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            f.name: flatten(getattr(value, f.name), leaves) for f in dataclasses.fields(value)
        }
        return lambda new: dataclasses.replace(value, **{n: p(new) for n, p in fields.items()})
    place = len(leaves)
    leaves.append(value)
    return lambda new: new[place]


def tensors(leaves: list[Any]) -> list[int]:
    return [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]


def resize_everywhere(rng: random.Random, leaves: list[Any]) -> None:
    """Every axis of one size gets another: widths, counts and head dims change together."""
    sizes = {size for i in tensors(leaves) for size in leaves[i].shape if size > 1}
    if not sizes:
        return
    old = rng.choice(sorted(sizes))
    new = rng.choice([rng.randrange(old + 1), old - 1, rng.randrange(1, old + 1), old + 1, 2 * old])
    for i in tensors(leaves):
        for axis, size in enumerate(leaves[i].shape):
            if size == old:
                leaves[i] = resized(leaves[i], axis, new)


def resize_one(rng: random.Random, leaves: list[Any]) -> None:
    places = [i for i in tensors(leaves) if leaves[i].dim()]
    if places:
        i = rng.choice(places)
        axis = rng.randrange(leaves[i].dim())
        leaves[i] = resized(leaves[i], axis, rng.randrange(leaves[i].shape[axis] + 2))


def resized(tensor: Tensor, axis: int, size: int) -> Tensor:
    """A part of the tensor, or the tensor repeated up to the size."""
    if tensor.shape[axis] == 0 or tensor.numel() // tensor.shape[axis] * size > LARGEST:
        return tensor
    while tensor.shape[axis] < size:
        tensor = torch.cat([tensor, tensor], axis)
    return tensor.narrow(axis, 0, size)


def restride(rng: random.Random, leaves: list[Any]) -> None:
    """The same values at other strides: axes swapped in memory, gaps, steps, an odd offset."""
    for i in tensors(leaves):
        if rng.random() < 0.5 or leaves[i].dim() == 0 or leaves[i].numel() > LARGEST:
            continue
        old: Tensor = leaves[i]
        order = list(range(old.dim()))
        if rng.random() < 0.5:
            rng.shuffle(order)
        steps = [rng.choice((1, 1, 1, 2)) for _ in order]
        gaps = [rng.choice((0, 0, 1, 3)) for _ in order]
        extents = [old.shape[a] * s + g for a, s, g in zip(order, steps, gaps, strict=True)]
        if torch.Size(extents).numel() > 4 * LARGEST:
            continue
        offset = rng.choice((0, 1, 3))
        flat = torch.zeros(torch.Size(extents).numel() + offset, dtype=old.dtype)[offset:]
        view = flat.view(extents)
        for axis, (a, step) in enumerate(zip(order, steps, strict=True)):
            view = view.narrow(axis, 0, old.shape[a] * step)
        view = view[tuple(slice(None, None, step) for step in steps)]
        view = view.permute([order.index(a) for a in range(old.dim())])
        leaves[i] = view.copy_(old)


def expand_one(rng: random.Random, leaves: list[Any]) -> None:
    """A stride of zero: every row is the first.

    Not where NaN marks memory that must not be read: repeated, it would lie below a cache's length,
    and `causal_attention` leaves open which rows of the sequence it then reaches. Not the bytes of
    a packed weight: zeros under the scale of an outlier are no quantisation of anything, and their
    sum is zero only within a rounding of that scale.
    """
    places = [i for i in tensors(leaves) if leaves[i].numel() and leaves[i].dim()]
    packed = (torch.uint8, torch.int8)
    places = [i for i in places if leaves[i].dtype not in packed and not leaves[i].isnan().any()]
    if places:
        i = rng.choice(places)
        axis = rng.randrange(leaves[i].dim())
        leaves[i] = leaves[i].narrow(axis, 0, 1).expand(leaves[i].shape)


def recast(rng: random.Random, leaves: list[Any]) -> None:
    places = tensors(leaves)
    if places:
        i = rng.choice(places)
        leaves[i] = leaves[i].to(rng.choice((*DTYPES, torch.float64, torch.int64, torch.uint8)))


def reshape_one(rng: random.Random, leaves: list[Any]) -> None:
    places = tensors(leaves)
    if places:
        i = rng.choice(places)
        leaves[i] = leaves[i][None] if rng.random() < 0.5 else leaves[i].flatten()


def scramble_integers(rng: random.Random, leaves: list[Any]) -> None:
    """Lengths, ids, positions and slots that may point anywhere."""
    places = [i for i in tensors(leaves) if leaves[i].dtype == torch.int64 and leaves[i].numel()]
    if places:
        i = rng.choice(places)
        values = leaves[i].clone().flatten()
        values[rng.randrange(len(values))] = rng.choice((-1, 0, 1, 5, 1 << 20, 1 << 62, -(1 << 63)))
        leaves[i] = values.view(leaves[i].shape)


def renumber(rng: random.Random, leaves: list[Any]) -> None:
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, int | float | str | None)]
    if places:
        leaves[rng.choice(places)] = rng.choice((*NUMBERS, None, "other", True))


WHOLE: tuple[Change, ...] = (resize_everywhere, restride, restride, expand_one)
BROKEN: tuple[Change, ...] = (resize_one, recast, reshape_one, scramble_integers, renumber)


def fuzzed(rng: random.Random, spec: OpSpec) -> tuple[str, Callable[[int], Call]]:
    """What the call is made of, and the call for each draw of its values; making it may already
    be refused."""
    sample = rng.choice([s for s in spec.samples if s.kind in KINDS])
    dtype = rng.choice(DTYPES)
    changes = [rng.choice(WHOLE) for _ in range(rng.randrange(4))]
    if rng.random() < 0.4:
        changes.insert(rng.randrange(len(changes) + 1), rng.choice(BROKEN))
    if spec.mutates:  # what is written must not overlap itself: PyTorch's own rule
        changes = [change for change in changes if change is not expand_one]

    state = rng.getstate()

    def make(draw: int) -> Call:
        same = random.Random()
        same.setstate(state)
        built = sample.make(Maker(dtype, seed=same.randrange(1 << 30) + draw))
        leaves: list[Any] = []
        rebuild = flatten((built.args, built.kwargs), leaves)
        for change in changes:
            change(same, leaves)
        args, kwargs = rebuild(leaves)
        return Call(args, kwargs)

    names = ", ".join(change.__name__ for change in changes)
    return f"{spec.name} [{sample.name}] {dtype}: {names or 'unchanged'}", make


Results = tuple[list[Tensor], list[Tensor], list[Tensor]]  # got, plain, truth


def attempt(spec: OpSpec, make: Callable[[int], Call]) -> tuple[str, str]:
    """("right" | "refused" | "reference" | "wrong", why) of one call."""
    try:
        built = make(0)
        try:
            found, flat = capture(spec.function, *built.args, **built.kwargs)
        except RuntimeError:
            # PyTorch's own check of the schema, which a plain eager call does not pass through.
            spec.function(*built.args, **built.kwargs)
            return "wrong", "runs, although it does not fit the schema"
        got = numerics.results(found, found, flat)
    except REFUSALS as error:
        return ("refused", "") if str(error) else ("wrong", f"{type(error).__name__} says nothing")
    except Exception as error:
        return "wrong", f"{type(error).__name__}: {str(error)[:300]}"
    if why_not(found, "cpu", flat) is not None:
        return "reference", ""

    def drawn(draw: int) -> Results:
        if draw == 0:
            return beside_the_oracle(found, flat, got)
        again = make(draw)
        op, other = capture(spec.function, *again.args, **again.kwargs)
        return beside_the_oracle(op, other, numerics.results(op, op, other))

    reason = numerics.refusal_over_draws(found, drawn)
    if not reason:
        return "right", ""
    shapes = [(list(a.shape), list(a.stride())) for a in flat if isinstance(a, Tensor)]
    return "wrong", f"{reason}; shapes and strides {shapes}"


def beside_the_oracle(spec: OpSpec, flat: Sequence[Any], got: list[Tensor]) -> Results:
    plain, truth = numerics.results(spec, spec.reference, flat), numerics.oracle(spec, flat)
    if spec.name == "argmax_head":  # a changed call may hold words that tie: any of them is right
        logits = logits_by_word(spec, flat)
        got, plain = ([values, logits.gather(1, i).to(values)] for values, i in (got, plain))
        truth = [truth[0], logits.gather(1, truth[1])]
    return got, plain, truth


def logits_by_word(spec: OpSpec, flat: Sequence[Any]) -> Tensor:
    """float64 [N, words] of an `argmax_head` call."""
    words_of_all = flat[3].shape[0]
    values, words = numerics.oracle(spec, [*flat[:-1], words_of_all])
    return torch.empty_like(values).scatter_(1, words, values)


def work(seed: int, first: int, count: int) -> int:
    """Run calls `first` to `first + count` of `seed`; 1 if one was wrong."""
    specs = [spec for spec in REGISTRY.values() if "cpu" in spec.kernels]
    outcomes: Counter[str] = Counter()
    for number in range(first, first + count):
        rng = random.Random(f"{seed} {number}")
        spec = rng.choice(specs)
        name, make = fuzzed(rng, spec)
        print(f"call {number}: {name}", file=sys.stderr, flush=True)
        outcome, why = attempt(spec, make)
        outcomes[outcome] += 1
        if outcome == "wrong":
            print(f"WRONG call {number} of seed {seed}: {name}: {why}", flush=True)
    print(f"{count} calls of {len(specs)} ops, seed {seed}: {dict(outcomes)}", flush=True)
    return 1 if outcomes["wrong"] else 0


def test_fuzzed_calls_are_right_or_refused() -> None:
    if not extension.EXTENSION.loaded:
        import pytest

        pytest.skip(extension.EXTENSION.reason)
    seed = int(os.environ.get("FLASHVL_FUZZ_SEED", "0"))
    count = int(os.environ.get("FLASHVL_FUZZ_CALLS", "400"))
    done = subprocess.run(
        [sys.executable, __file__, str(seed), "0", str(count)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout)
    last = (done.stderr.strip().splitlines() or ["no call"])[-1]
    assert done.returncode in (0, 1), (
        f"seed {seed}: died with status {done.returncode} after {last!r}"
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert "'right'" in done.stdout


if __name__ == "__main__":
    sys.exit(work(*(int(argument) for argument in sys.argv[1:4])))
