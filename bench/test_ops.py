"""The same cases as pytest-benchmark cases: `pytest bench --benchmark-only`.

The command `flashvl-bench ops` takes turns between backends, which pytest-benchmark cannot; use
this where its tools are wanted (`--benchmark-autosave`, `--benchmark-compare`, `-k rms_norm`).
The plain expression is a case of its own, in the same group as the backends. A backend that would
fall back skips with its reason; a wrong result fails before anything is timed.
"""

from __future__ import annotations

import time
from functools import cache
from typing import Any

import pytest
import torch

from flashvl_bench import ceilings, machine
from flashvl_bench.cases import Case, Judge, asked_backends, kernel_name, refusal, select
from flashvl_bench.ceilings import NAMES, Ceilings
from flashvl_bench.ops import PLAIN
from flashvl_bench.timing import Rotation
from flashvl_kernels import numerics
from flashvl_kernels.backends import backend

SECONDS, LEAST, MOST = 0.5, 3, 200
CASES = [
    pytest.param(case, asked, id=f"{case.name}-{asked}".replace(" ", "_"))
    for case in select()
    for asked in (PLAIN, *asked_backends(case.spec))
]


@cache
def _ceilings() -> Ceilings:
    machine.keep_freed_memory()
    return ceilings.measure(machine.last_level_cache(), quick=True)


@pytest.mark.parametrize(("case", "asked"), CASES)
def test_op(benchmark: Any, case: Case, asked: str) -> None:
    spec, flat = case.spec, case.flat()
    run, chosen = (spec.reference, "torch") if asked == PLAIN else (spec.op, asked)
    reason = None if asked == PLAIN else refusal(spec, asked, flat)
    if reason is not None:
        pytest.skip(f"falls back: {reason}")
    top = _ceilings()
    with backend(chosen), torch.no_grad():
        got = numerics.results(spec, run, flat)
        wrong = None if asked == PLAIN else Judge(spec, flat).wrong(got)
        assert wrong is None, f"WRONG: {wrong}"
        rotation = Rotation(flat, machine.last_level_cache())
        start = time.perf_counter()
        run(*rotation.take())
        once = time.perf_counter() - start
        rounds = min(max(int(SECONDS / once), LEAST), MOST)
        benchmark.group = case.name
        benchmark.pedantic(run, setup=lambda: (rotation.take(), {}), rounds=rounds)
    if benchmark.disabled:
        return
    median, cost = benchmark.stats.stats.median, spec.cost(*flat)
    least, bound = top.least_time(cost, NAMES[case.dtype])
    benchmark.extra_info |= {
        "kernel": PLAIN if asked == PLAIN else kernel_name(spec, asked, flat)[1],
        "GB/s": cost.bytes / median / 1e9,
        "GFLOP/s": cost.flops / median / 1e9,
        "fraction of ceiling": least / median,
        "bound": bound,
        "copies": rotation.copies,
    }
