"""Decode steps from a CUDA graph. Here a stand-in captures: it runs the step again at each replay,
from the memory that was captured, into the memory of the result. tests/gpu has the real one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

import flashvl_kernels as fvk
from flashvl import FlashVL, recorded_step
from flashvl.step_graph import StepGraph
from flashvl.step_inputs import IndexMemory
from tests.model.test_decoder import SMALL, around, rows

TOKENS = ([3, 5], [7, 11], [2, 2], [13, 17])


class Recorder:
    """Stands in for `step_graph.capture`."""

    def __init__(self) -> None:
        self.captured = 0
        self.error: str | None = None

    def __call__(self, step: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], object]]:
        if self.error:
            raise RuntimeError(self.error)
        self.captured += 1
        states = torch.empty_like(step())
        return states, lambda: states.copy_(step())


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """Steps on the CPU as they are on a GPU."""
    found = Recorder()
    monkeypatch.setattr(recorded_step, "StepGraph", partial(StepGraph, record=found))
    monkeypatch.setattr(recorded_step, "_from_tape", recorded_step._from_graph)
    return found


def model(seed: int = 0) -> FlashVL:
    return FlashVL.random(around(SMALL), seed, dtype=torch.float32)


def start(m: FlashVL, capacity: int = 40) -> fvk.KVCache:
    embeds = rows(14, SMALL.dim)
    return m.prefill([embeds[:9], embeds[9:]], capacity=capacity)[1]


def logits(m: FlashVL, cache: fvk.KVCache, steps: range = range(4)) -> Tensor:
    return torch.stack([m.decode_step(TOKENS[i], cache) for i in steps])


@pytest.fixture
def want(monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """The logits of all steps, op by op."""
    m = model()
    with monkeypatch.context() as patch:
        patch.setattr(recorded_step, "run", lambda *_: None)
        return logits(m, start(m))


def test_the_second_step_is_captured_and_all_are_right(want: Tensor, recorder: Recorder) -> None:
    m = model()
    cache = start(m)
    first = logits(m, cache, range(1))
    assert recorder.captured == 0
    assert m.explain_decode(cache).startswith("op by op: a first step loads the kernels")
    rest = logits(m, cache, range(1, 4))
    assert recorder.captured == 1
    assert m.explain_decode(cache) == "a CUDA graph"
    assert torch.equal(torch.cat([first, rest]), want)
    assert cache.lengths == [13, 9]


def test_a_cache_that_grows_is_captured_again(want: Tensor, recorder: Recorder) -> None:
    m = model()
    cache = start(m, capacity=10)  # full after one step: the memory is replaced
    assert torch.equal(logits(m, cache), want)
    cache.truncate([9, 5])
    assert torch.equal(logits(m, cache), want)


@pytest.mark.parametrize("change", ["parameter", "memory"])
def test_replaced_weights_are_seen(
    change: str, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    m = model()
    cache = start(m)
    logits(m, cache, range(2))
    norm, value = m.decoder.layers[1].norm1, torch.full((SMALL.dim,), 0.5)
    if change == "parameter":
        norm.weight = torch.nn.Parameter(value)
    else:  # a graph has the address of the old memory
        norm.weight.data = value
    got = logits(m, cache, range(2, 4))
    assert recorder.captured == 2
    cache.truncate([11, 7])
    with monkeypatch.context() as patch:
        patch.setattr(recorded_step, "run", lambda *_: None)
        assert torch.equal(logits(m, cache, range(2, 4)), got)


def test_without_a_graph_steps_run_op_by_op_and_say_why(want: Tensor, recorder: Recorder) -> None:
    recorder.error = "operation not permitted when stream is capturing"
    m = model()
    cache = start(m)
    assert torch.equal(logits(m, cache), want)
    assert "no CUDA graph of a step could be made (operation not" in m.explain_decode(cache)


def test_indices_are_those_of_the_step() -> None:
    memory = IndexMemory(3)
    memory.write([4, 0, 7], 10)
    at = memory.indices
    assert at.positions.tolist() == [4, 0, 7]
    assert at.slots.tolist() == [4, 10, 27]
    assert at.lengths.tolist() == [5, 1, 8]
