"""CPU kernels and threads: the same bits again and again, any number of threads, callers at once,
and forked processes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flashvl_kernels import extension, numerics
from flashvl_kernels.backends import why_not
from flashvl_kernels.spec import REGISTRY, OpSpec, capture

ROOT = Path(__file__).resolve().parents[2]
SPECS = [spec for spec in REGISTRY.values() if "cpu" in spec.kernels]
COUNTS = (1, 2, 3, 7)
RUNS = 100
LARGEST = 2e10  # FLOPs: the reference would need seconds for more, and here it does not run

each_op = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    if not extension.EXTENSION.loaded:
        pytest.skip(extension.EXTENSION.reason)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def calls(spec: OpSpec, *kinds: str) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Name and schema arguments of the samples of these kinds that the kernel takes, in bf16."""
    for sample in spec.samples:
        if sample.kind in kinds:
            built = sample.build(torch.bfloat16)
            _, flat = capture(spec.function, *built.args, **built.kwargs)
            if why_not(spec, "cpu", flat) is None:
                yield sample.name, flat


def large_call(spec: OpSpec) -> tuple[Any, ...]:
    """The benchmark call with the fewest FLOPs: full-size, so its work is split over threads."""
    flats = (flat for _, flat in calls(spec, "bench"))  # not all of them in memory at once
    flat = min(flats, key=lambda flat: spec.cost(*flat).flops, default=())
    if not flat or spec.cost(*flat).flops > LARGEST:
        pytest.skip(f"{spec.name} has no full-size call that is quick enough")
    return flat


def run(spec: OpSpec, flat: tuple[Any, ...]) -> list[Tensor]:
    return numerics.results(spec, spec.kernel("cpu").run, flat)


def same_bits(got: list[Tensor], expected: list[Tensor]) -> bool:
    """NaN included, which torch.equal holds to be unequal to itself."""
    return all(
        g.shape == e.shape and torch.equal(_bits(g), _bits(e))
        for g, e in zip(got, expected, strict=True)
    )


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)


@each_op
def test_a_hundred_runs_give_the_same_bits(spec: OpSpec) -> None:
    torch.set_num_threads(2)
    for name, flat in list(calls(spec, "typical"))[:2]:
        first = run(spec, flat)
        for i in range(RUNS):
            assert same_bits(run(spec, flat), first), f"{name}, run {i + 2}"


@each_op
def test_full_size_runs_give_the_same_bits(spec: OpSpec) -> None:
    torch.set_num_threads(3)
    flat = large_call(spec)
    first = run(spec, flat)
    for _ in range(3):
        assert same_bits(run(spec, flat), first)


@each_op
@pytest.mark.parametrize("count", COUNTS)
def test_small_calls_are_right_with_any_number_of_threads(spec: OpSpec, count: int) -> None:
    torch.set_num_threads(count)
    for name, flat in calls(spec, "typical", "edge", "strided", "zero"):
        plain, truth = numerics.results(spec, spec.reference, flat), numerics.oracle(spec, flat)
        for g, p, t in zip(run(spec, flat), plain, truth, strict=True):
            verdict = numerics.judge(g, p, t, spec.tolerance)
            assert verdict.right, f"{name}, {count} threads: {verdict.reason}"


@each_op
def test_full_size_calls_agree_over_numbers_of_threads(spec: OpSpec) -> None:
    """Another split may add in another order. That moves an fp32 sum by far less than a bf16
    rounding; where the sum, or an intermediate value, then falls on the other side of one, the
    result moves by a unit in the last place, that is two unit roundoffs of it, and of the
    results' usual size where it went through a later sum."""
    flat = large_call(spec)
    torch.set_num_threads(1)
    expected = run(spec, flat)
    for count in COUNTS[1:]:
        torch.set_num_threads(count)
        for g, e in zip(run(spec, flat), expected, strict=True):
            if not e.is_floating_point():
                assert torch.equal(g, e)
                continue
            wide, one = g.double(), e.double()
            assert torch.equal(wide.isfinite(), one.isfinite())
            finite = one.isfinite()
            usual = float(one[finite].square().mean().sqrt())
            roundoff = numerics.UNIT_ROUNDOFF[e.dtype]
            moved = (wide - one)[finite].abs()
            assert float(moved.square().mean().sqrt()) <= roundoff * usual
            assert bool((moved <= 2 * roundoff * (one[finite].abs() + usual)).all())


def test_two_python_threads_at_once_compute_what_each_does_alone() -> None:
    torch.set_num_threads(2)
    work = [(spec, flat) for spec in SPECS for _, flat in list(calls(spec, "typical", "edge"))[:4]]
    alone = [run(spec, flat) for spec, flat in work]
    wrong: list[str] = []

    def repeat(order: list[int]) -> None:
        torch.set_num_threads(2)  # a thread of its own has a count of its own
        for _ in range(10):
            for i in order:
                spec, flat = work[i]
                if not same_bits(run(spec, flat), alone[i]):
                    wrong.append(spec.name)

    forward = list(range(len(work)))
    threads = [threading.Thread(target=repeat, args=(o,)) for o in (forward, forward[::-1])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_forked_process_computes_the_same() -> None:
    """As in the workers of a DataLoader, which run with one thread: OpenMP's own threads do not
    survive a fork. In a fresh process, so that a child that hangs is a time-out here."""
    done = subprocess.run(
        [sys.executable, __file__],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, f"status {done.returncode}: {done.stdout}{done.stderr}"
    assert int(done.stdout.split()[-1]) > 0


def _fork() -> int:
    work = [(spec, flat) for spec in SPECS for _, flat in list(calls(spec, "typical"))[:2]]
    torch.set_num_threads(2)
    for spec in SPECS:  # the parent has used its threads and its working memory
        for flat in (flat for _, flat in calls(spec, "typical")):
            run(spec, flat)
    torch.set_num_threads(1)
    expected = [run(spec, flat) for spec, flat in work]
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        same = all(same_bits(run(s, f), e) for (s, f), e in zip(work, expected, strict=True))
        os._exit(0 if same else 1)
    _, status = os.waitpid(child, 0)
    print(len(work))
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(_fork())
