"""The float64 oracle and the one rule that decides whether a result is right.

A kernel may err, against the reference in float64, by at most twice what the plain PyTorch
expression in the same dtype errs (the rule of FlashAttention's tests), plus one rounding of the
result, in the maximum and in the root mean square. NaN and Inf must stand where the oracle, or the
plain expression for want of range, has them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flashvl_kernels.spec import OpSpec, Tolerance

UNIT_ROUNDOFF = {
    torch.bfloat16: 2.0**-8,
    torch.float16: 2.0**-11,
    torch.float32: 2.0**-24,
    torch.float64: 2.0**-53,
}


def widen(value: Any) -> Any:
    """Float tensors and float dtypes of an argument in float64; everything else as it is."""
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.to(torch.float64)
    if isinstance(value, torch.dtype) and value.is_floating_point:
        return torch.float64
    return value


def outputs(result: Any) -> tuple[Tensor, ...]:
    """An op's result as a tuple, whatever it returns."""
    return result if isinstance(result, tuple) else (result,)


def duplicate(flat: Sequence[Any]) -> tuple[Any, ...]:
    """The same arguments in memory of their own, strides kept."""
    return tuple(
        torch.empty_strided(a.shape, a.stride(), dtype=a.dtype, device=a.device).copy_(a)
        if isinstance(a, Tensor)
        else a
        for a in flat
    )


@contextmanager
def poisoned() -> Iterator[None]:
    """Memory that `torch.empty` and its kin return holds NaN, or the largest integer: a kernel that
    reads what nobody wrote is wrong whatever an earlier call left there."""
    before = torch.are_deterministic_algorithms_enabled()
    only_warns = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=only_warns)


def results(spec: OpSpec, run: Callable[..., Any], flat: Sequence[Any]) -> list[Tensor]:
    """What `run` returns on schema arguments, followed by what it wrote into them."""
    mine = duplicate(flat) if spec.mutates else tuple(flat)
    with torch.no_grad():
        out = list(outputs(run(*mine)))
    if spec.mutates:
        out += [arg for arg in mine if isinstance(arg, Tensor) and arg.is_floating_point()]
    return out


def oracle(spec: OpSpec, flat: Sequence[Any]) -> list[Tensor]:
    """The reference's results in float64 on schema arguments."""
    return results(spec, spec.reference, [widen(arg) for arg in flat])


@dataclass(frozen=True)
class Verdict:
    """How one output compares: errors against the oracle, and what was allowed."""

    right: bool
    reason: str
    rms: float
    rms_allowed: float
    worst: float
    worst_allowed: float


def judge(
    got: Tensor,
    plain: Tensor,
    truth: Tensor,
    tolerance: Tolerance | None = None,
    plain_worst: float = 0.0,
) -> Verdict:
    """Compare `got` with the oracle `truth`, given the plain expression's `plain`.

    plain_worst: the largest error of the plain expression on other draws of the values.
    """
    tolerance = tolerance or Tolerance()
    if got.shape != truth.shape or got.dtype != plain.dtype:
        reason = f"got {got.dtype} {list(got.shape)}, expected {plain.dtype} {list(truth.shape)}"
        return Verdict(False, reason, 0, 0, 0, 0)
    if not got.is_floating_point():
        equal = torch.equal(got, plain)
        return Verdict(equal, "" if equal else "integers differ", 0, 0, 0, 0)
    limit = torch.finfo(got.dtype).max
    expected = torch.where(truth.abs() > limit, truth.sign() * torch.inf, truth)
    wide, finite = got.double(), expected.isfinite() & plain.double().isfinite()
    special = ~expected.isfinite()
    # Or where the plain expression has them: in float64, silu(-200) * inf does not underflow.
    same = (_alike(wide, expected) | _alike(wide, plain.double()))[special]
    if not same.all():
        return Verdict(False, "NaN or Inf stand elsewhere than in the oracle", 0, 0, 0, 0)
    if not wide[finite].isfinite().all():
        return Verdict(False, "NaN or Inf where the oracle and plain result are finite", 0, 0, 0, 0)
    error, plain_error = (wide - expected)[finite].abs(), (plain.double() - expected)[finite].abs()
    if error.numel() == 0:
        return Verdict(True, "", 0, 0, 0, 0)
    rounding = tolerance.roundings * UNIT_ROUNDOFF[got.dtype] * expected[finite].abs()
    tiny = torch.finfo(got.dtype).smallest_normal * UNIT_ROUNDOFF[got.dtype] * 2
    rms, worst = _rms(error), float(error.max())
    rms_allowed = tolerance.factor * _rms(plain_error) + _rms(rounding) + tiny
    worst_bound = tolerance.factor * max(float(plain_error.max()), plain_worst) + rounding + tiny
    right = rms <= rms_allowed and bool((error <= worst_bound).all())
    reason = "" if right else f"rms {rms:.3g} of {rms_allowed:.3g}, worst {worst:.3g}"
    return Verdict(right, reason, rms, rms_allowed, worst, float(worst_bound.max()))


def refusal(
    spec: OpSpec,
    got: Sequence[Tensor],
    plain: Sequence[Tensor],
    truth: Sequence[Tensor],
    plain_worst: Sequence[float] = (),
) -> str:
    """Why the first output that is not right is not, by `judge`; empty where all are."""
    for i, (mine, naive, exact) in enumerate(zip(got, plain, truth, strict=True)):
        known = plain_worst[i] if plain_worst else 0.0
        verdict = judge(mine, naive, exact, spec.tolerance, known)
        if not verdict.right:
            return f"output {i}: {verdict.reason}"
    return ""


Outputs = Sequence[Tensor]
DRAWS = 16
PLAIN_DRAWS = 1024


def refusal_over_draws(
    spec: OpSpec,
    draw: Callable[[int], tuple[Outputs, Outputs, Outputs]],
    flat: Callable[[int], Sequence[Any]] | None = None,
) -> str:
    """`refusal` of draw 0 of a call's values; if it is refused, of DRAWS draws laid end to end.

    The bound is the plain expression's own error, and over a handful of elements that is luck.
    Every draw counts, the first included: a wrong kernel stays wrong however many it is given.

    The largest error of a result is a matter of luck for longer: of attention whose softmax is
    nearly decided, that of the plain expression itself grew from 1.4e-6 over 16 draws to 2.3e-6
    over 1024. So where `flat` can draw arguments, PLAIN_DRAWS of them say how large it gets; the
    mean error is that of the DRAWS draws all the same.

    draw: the outputs, those of the plain expression and those of the oracle.
    """
    first = draw(0)
    if not refusal(spec, *first):
        return ""
    draws = [first, *map(draw, range(1, DRAWS))]
    got, plain, truth = (_end_to_end(side) for side in zip(*draws, strict=True))
    reason = refusal(spec, got, plain, truth)
    largest_alone = not refusal(spec, got, plain, truth, [math.inf] * len(got))
    if not reason or flat is None or not largest_alone:
        return reason
    worst = [0.0] * len(first[0])
    for number in range(DRAWS, PLAIN_DRAWS):
        args = flat(number)
        pairs = zip(results(spec, spec.reference, args), oracle(spec, args), strict=True)
        worst = [max(known, _worst(*pair)) for known, pair in zip(worst, pairs, strict=True)]
    return refusal(spec, got, plain, truth, worst)


def _worst(plain: Tensor, truth: Tensor) -> float:
    error = (plain.double() - truth).abs()
    return float(error[error.isfinite()].max()) if error.isfinite().any() else 0.0


def _end_to_end(draws: Sequence[Outputs]) -> list[Tensor]:
    return [torch.cat([each.flatten() for each in parts]) for parts in zip(*draws, strict=True)]


def _alike(a: Tensor, b: Tensor) -> Tensor:
    return (a == b) | (a.isnan() & b.isnan())


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())
