"""`bench_op` on functions of one's own, on a clock that only they advance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from flashvl_bench.ceilings import Ceilings
from flashvl_bench.own import UNJUDGED, OwnRow, bench_op
from flashvl_bench.timing import Budget
from flashvl_kernels.spec import Cost

BANDWIDTH = 10e9
RATES = {"bf16": 1e15, "fp16": 1e15, "fp32": 1e15}
TOP = Ceilings(BANDWIDTH, BANDWIDTH, RATES, 1, {}, BANDWIDTH)
BUDGET = Budget(seconds=1e9, least=3, most=4)
X = torch.linspace(-1, 1, 4096)
COST = Cost(X.nbytes, X.nbytes, X.numel())


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1e-12
        return self.now


def measured(clock: Clock, run: Callable[..., Any], **options: Any) -> OwnRow:
    common = {"budget": BUDGET, "top": TOP, "cache_bytes": 1 << 16, "clock": clock}
    return bench_op(run, (X,), **{"cost": COST, "reference": double, **common, **options})


def double(x: Tensor) -> Tensor:
    return x * 2


def taking(clock: Clock, seconds: float, off: float = 0.0) -> Callable[[Tensor], Tensor]:
    """A kernel that takes `seconds` and is wrong by `off`."""

    def kernel(x: Tensor) -> Tensor:
        clock.now += seconds
        return x + x + off

    return kernel


def test_twice_the_bytes_show_half_the_fraction() -> None:
    rows = []
    for times_the_bytes in (1, 2):
        clock = Clock()
        rows.append(measured(clock, taking(clock, times_the_bytes * COST.bytes / BANDWIDTH)))
    assert [row.status for row in rows] == ["ok", "ok"]
    assert rows[0].fraction == pytest.approx(1.0, rel=1e-5)
    assert rows[1].fraction == pytest.approx(0.5, rel=1e-5)
    assert "50% of the memory ceiling" in str(rows[1]) and rows[1].bound == "memory"


def test_a_wrong_or_raising_function_shows_no_time() -> None:
    clock = Clock()
    wrong = measured(clock, taking(clock, 1e-3, off=0.01))
    assert (wrong.status, wrong.seconds, wrong.median) == ("wrong", (), None)
    assert "WRONG: output 0: rms" in str(wrong)
    short = measured(clock, lambda x: (x + x, x))
    assert short.status == "wrong" and "2 outputs; needs 1" in short.reason

    def broken(x: Tensor) -> Tensor:
        raise RuntimeError("no such instruction")

    fails = measured(clock, broken)
    assert fails.status == "fails" and "FAILS: RuntimeError: no such" in str(fails)


def test_without_a_reference_the_row_says_so() -> None:
    clock = Clock()
    row = measured(clock, taking(clock, 1e-3, off=1.0), reference=None)
    assert row.status == "ok" and row.reason == UNJUDGED and UNJUDGED in str(row)
    assert row.reference_seconds == ()


def test_without_a_cost_there_is_no_fraction() -> None:
    clock = Clock()
    row = measured(clock, taking(clock, 1e-3), cost=None)
    assert row.status == "ok" and row.fraction is None and "ceiling" not in str(row)
    assert row.median == pytest.approx(1e-3)
    assert "x the reference" in str(row)
