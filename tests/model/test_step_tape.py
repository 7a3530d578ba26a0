"""Decode steps from a tape give what the ops give one by one, and notice what was replaced."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import Tensor

import flashvl_kernels as fvk
from flashvl import FlashVL, recorded_step
from flashvl_kernels import tape
from flashvl_kernels.packing import FORMATS
from flashvl_kernels.spec import OpSpec
from tests.model.test_decoder import SMALL, around, rows

pytestmark = pytest.mark.skipif(not tape.available(), reason="the CPU extension is not here")

TOKENS = ([3, 5], [7, 11], [2, 2], [13, 17])


def model(seed: int = 0, weights: str = "bf16", dtype: torch.dtype = torch.bfloat16) -> FlashVL:
    return FlashVL.random(around(SMALL), seed, dtype=dtype, weights=weights)


def start(m: FlashVL, capacity: int = 40) -> fvk.KVCache:
    embeds = rows(14, SMALL.dim).to(torch.bfloat16)
    return m.prefill([embeds[:9], embeds[9:]], capacity=capacity)[1]


def logits(m: FlashVL, cache: fvk.KVCache, steps: range = range(4)) -> Tensor:
    return torch.stack([m.decode_step(TOKENS[i], cache) for i in steps])


def plain(m: FlashVL, monkeypatch: pytest.MonkeyPatch, capacity: int = 40) -> Tensor:
    """The logits of all steps without a tape."""
    with monkeypatch.context() as patch:
        patch.setattr(recorded_step, "run", lambda *_: None)
        return logits(m, start(m, capacity))


def calls_of(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of ops called from Python from now on."""
    names: list[str] = []
    call = OpSpec.__call__

    def count(self: OpSpec, *args: object) -> object:
        names.append(self.name)
        return call(self, *args)

    monkeypatch.setattr(OpSpec, "__call__", count)
    return names


@pytest.mark.parametrize("weights", FORMATS)
def test_same_bits_without_python(weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    m = model(weights=weights)
    want = plain(m, monkeypatch)
    cache = start(m)
    first = logits(m, cache, range(1))
    names = calls_of(monkeypatch)
    rest = logits(m, cache, range(1, 4))
    assert torch.equal(torch.cat([first, rest]), want)
    assert names == ["linear"] * 3, "only the head is called from Python"
    assert cache.lengths == [13, 9]


def test_states_of_a_step_stay() -> None:
    m = model()
    cache = start(m)
    with torch.no_grad():
        first = m._next_states(TOKENS[0], cache)
        kept = first.clone()
        m._next_states(TOKENS[1], cache)
    assert torch.equal(first, kept)


def test_inference_mode_and_no_grad_share_a_tape(monkeypatch: pytest.MonkeyPatch) -> None:
    m = model()
    want = plain(m, monkeypatch)
    cache = start(m)
    with torch.inference_mode():
        first = logits(m, cache, range(2))
    assert torch.equal(torch.cat([first.clone(), logits(m, cache, range(2, 4))]), want)


def test_truncated_and_grown_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    m = model()
    want = plain(m, monkeypatch)
    cache = start(m, capacity=10)  # full after one step: the memory is replaced
    assert torch.equal(logits(m, cache), want)
    cache.truncate([9, 5])
    assert torch.equal(logits(m, cache), want)


def check_next_steps(m: FlashVL, cache: fvk.KVCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two more steps on a cache of 11 and 7 are those that the ops give one by one."""
    got = logits(m, cache, range(2, 4))
    cache.truncate([11, 7])
    with monkeypatch.context() as patch:
        patch.setattr(recorded_step, "run", lambda *_: None)
        assert torch.equal(logits(m, cache, range(2, 4)), got)


@pytest.mark.parametrize("change", ["rows", "cast", "load", "memory"])
def test_replaced_weights(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    m = model()
    cache = start(m)
    logits(m, cache, range(2))
    if change == "rows":
        m.requires_grad_(True)
        m.requires_grad_(False)
    elif change == "cast":
        m.float().bfloat16()
    elif change == "load":
        m.load_state_dict(model(seed=1).state_dict())
    else:  # the same Parameter over other memory
        m.decoder.layers[1].norm1.weight.data = torch.full((SMALL.dim,), 0.5).bfloat16()
    check_next_steps(m, cache, monkeypatch)


def test_weights_that_no_longer_fit() -> None:
    m = model()
    cache = start(m)
    logits(m, cache, range(2))
    m.decoder.layers[1].norm1.weight.data = torch.ones(3).bfloat16()
    with pytest.raises((ValueError, RuntimeError), match="norm_weight"):
        logits(m, cache, range(1))


def test_another_decoder_on_the_same_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = model(), model(seed=1)
    cache = start(a)
    logits(a, cache, range(2))
    check_next_steps(b, cache, monkeypatch)


def test_another_backend_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    m = FlashVL.random(around(SMALL), layout="rows")
    cache = start(m)
    logits(m, cache, range(2))
    names = calls_of(monkeypatch)
    with fvk.backend("torch"):
        logits(m, cache, range(2, 3))
        logits(m, cache, range(3, 4))
    assert names.count("decode_attention") == 2 * SMALL.layers


def test_explain_decode_says_why_not() -> None:
    m = model()
    cache = start(m)
    assert m.explain_decode(cache) == "no decode step of all sequences has run on this cache"
    for _ in range(2):  # the step that records, and one that replays
        logits(m, cache, range(1))
        assert m.explain_decode(cache) == f"a tape of {5 * SMALL.layers} calls"
    with torch.autocast("cpu"):
        logits(m, cache, range(1))
    assert m.explain_decode(cache).startswith("op by op: a mode, autocast")
    m = FlashVL.random(around(SMALL), layout="rows")
    cache = start(m)
    with fvk.backend("torch"):
        for _ in range(2):
            logits(m, cache, range(1))
            told = f"op by op: 0 of {5 * SMALL.layers} calls ran on CPU kernels"
            assert m.explain_decode(cache).startswith(told)


def test_a_tape_goes_with_its_cache() -> None:
    m = model()
    cache = start(m)
    logits(m, cache, range(1))
    kept = weakref.ref(recorded_step._TAPES[cache])
    del cache
    gc.collect()
    assert kept() is None


def test_recording_by_hand() -> None:
    x, w = torch.randn(1, 32), torch.randn(16, 32)
    y, kept = tape.record(lambda: fvk.linear(x, w))
    assert len(kept) == 1
    x.copy_(torch.randn(1, 32))
    kept.run()
    assert torch.equal(y, fvk.linear(x, w))
    x.resize_(1, 16)
    with pytest.raises((ValueError, RuntimeError), match="linear: w"):
        kept.run()

    with pytest.raises(ZeroDivisionError):
        tape.record(lambda: 1 // 0)
    with pytest.raises(RuntimeError, match="recording already"):
        tape.record(lambda: tape.record(lambda: None))
    assert len(tape.record(lambda: fvk.linear(x.new_ones(1, 32), w))[1]) == 1
    for lost in (torch.ops.flashvl_cpu.tape_run, torch.ops.flashvl_cpu.tape_length):
        with pytest.raises(ValueError, match="no tape"):
            lost(1 << 40)


def test_tapes_can_be_turned_off() -> None:
    m = model()
    cache = start(m)
    with tape.off():
        off = logits(m, cache)
        assert "tapes are off" in m.explain_decode(cache)
    assert torch.equal(off, logits(m, start(m))) and not tape.is_off()
