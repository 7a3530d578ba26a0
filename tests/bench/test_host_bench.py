"""`flashvl-bench host`: what is counted, on a clock of the test's own."""

from __future__ import annotations

import itertools

import pytest
import torch

from flashvl_bench import cli, host
from flashvl_kernels import backends, triton
from flashvl_kernels.spec import REGISTRY

if reason := triton.missing():
    pytest.skip(reason, allow_module_level=True)


def ticking() -> host.Clock:
    """Half a second at every look: two batches of calls fit into a second."""
    ticks = itertools.count()
    return lambda: next(ticks) / 2


@pytest.mark.parametrize("name", host.NAMES)
def test_a_row_counts_the_launches_that_reach_the_driver(name: str) -> None:
    row = host.measure(REGISTRY["rms_norm"], name, 1.0, ticking())
    assert (row.launches, row.refused) == (1, "")
    assert row.seconds == row.planned == 0.5 / host.CALLS


def test_the_least_batch_counts() -> None:
    times = iter([0.0, 0.0, 0.9, 1.0, 1.2, 1.3, 2.9])
    calls: list[int] = []
    found = host.least(lambda: calls.append(1), 2.0, lambda: next(times))
    assert found == pytest.approx(0.2 / host.CALLS)
    assert len(calls) == 3 * host.CALLS


def test_the_stand_ins_leave_nothing_behind() -> None:
    from flashvl_kernels.triton import dispatch

    host.measure(REGISTRY["swiglu"], "triton", 0.5, ticking())
    host.measure(REGISTRY["swiglu"], "cuda", 0.5, ticking())
    assert not dispatch._COMPILED
    if not torch.cuda.is_available():
        assert backends.available("cuda") == ["torch"]


def test_the_command_prints_a_row_for_each_backend(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["host", "--op", "swiglu", "--seconds", "0.01"]) == 0
    out = capsys.readouterr().out
    assert "no GPU involved" in out
    assert [line.split()[:3] for line in out.splitlines()[2:]] == [
        ["swiglu", "triton", "1"],
        ["swiglu", "cuda", "1"],
    ]


def test_an_unknown_backend_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["host", "--backend", "cpu"])
    assert "--backend is 'cpu'; needs triton, cuda" in capsys.readouterr().err
