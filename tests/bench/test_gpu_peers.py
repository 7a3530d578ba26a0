"""Liger, FlashAttention and flashinfer as contenders, by stand-in modules of their API."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from flashvl_bench import cases, ops
from flashvl_bench.cases import Case, Judge, kernel_name, refusal, runner
from flashvl_bench.gpu import peers
from flashvl_bench.timing import Budget
from flashvl_kernels import backends, numerics
from flashvl_kernels.ops.causal_attention import _call as causal
from flashvl_kernels.ops.decode_attention import _call as decode
from flashvl_kernels.spec import REGISTRY, Maker, Sample, call
from tests.bench import fake_libraries
from tests.bench.fake_gpu import FakeCuda
from tests.bench.test_device_timing import TOP, timer


def _tiles(m: Maker, lengths: list[int] | None, channels: int = 64) -> Any:
    shape = (2, 9, 3, channels) if lengths is None else (sum(lengths), 3, channels)
    return call(
        *(m.normal(*shape) for _ in range(3)),
        lengths=None if lengths is None else torch.tensor(lengths),
        scale=0.2,
    )


def _rope(m: Maker, rows: int, positions: list[int] | None) -> Any:
    angles = m.normal(20, 8, dtype=torch.float32)
    at = None if positions is None else torch.tensor(positions)
    return call(m.normal(rows, 6 * 16), angles.cos(), angles.sin(), at, 4, 1)


CALLS: dict[str, dict[str, Callable[[Maker], Any]]] = {
    "rms_norm": {
        "plain": lambda m: call(m.normal(5, 48), m.normal(48), 1e-5),
        "residual": lambda m: call(m.normal(2, 3, 48), m.normal(48), 1e-6, m.normal(2, 3, 48)),
    },
    "swiglu": {"rows": lambda m: call(m.normal(3, 5, 32))},
    "rope_qkv": {
        "rows": lambda m: _rope(m, 7, None),
        "one row": lambda m: _rope(m, 1, None),
        "positions": lambda m: _rope(m, 3, [4, 19, 0]),
    },
    "tile_attention": {
        "batch": lambda m: _tiles(m, None),
        "packed": lambda m: _tiles(m, [9, 1, 12]),
    },
    "causal_attention": {
        "fresh": lambda m: causal(m, 12, (6, 1, 64), [12]),
        "a later chunk": lambda m: causal(m, 5, (4, 2, 64), [17, 19], 24),
        "padded left": lambda m: causal(m, 9, (4, 2, 64), [9, 4, 7], 9, 0.3),
    },
    "decode_attention": {
        "unequal": lambda m: decode(m, (4, 2, 64), [3, 11, 7], 12),
        "own scale": lambda m: decode(m, (6, 1, 128), [5], scale=0.05),
    },
}
RUNS = [
    pytest.param(peer, op, name, id=f"{peer}-{op}-{name}".replace(" ", "_"))
    for peer, op in peers.ADAPTERS
    for name in CALLS[op]
]


def case(op: str, name: str) -> Case:
    return Case(REGISTRY[op], Sample(name, CALLS[op][name], "bench"), torch.bfloat16)


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """The three are installed, and tensors count as a GPU's."""
    fake_libraries.install_all(monkeypatch)
    monkeypatch.setattr(peers.backends, "device_of", lambda _: "cuda")


@pytest.mark.parametrize(("peer", "op", "name"), RUNS)
def test_a_peer_computes_the_op(peer: str, op: str, name: str, libraries: None) -> None:
    made = case(op, name)
    flat = made.flat()
    before = numerics.duplicate(flat)
    assert refusal(made.spec, peer, flat) is None
    assert kernel_name(made.spec, peer, flat) == (peer, peers.MODULES[peer])
    run = runner(made.spec, peer, flat).run
    for _ in range(2):  # the second call is planned
        got = numerics.results(made.spec, run, flat)
        assert Judge(made.spec, flat).wrong(got) is None
    for old, new in zip(before, flat, strict=True):
        if isinstance(new, torch.Tensor):
            assert torch.allclose(old, new, 0, 0, equal_nan=True), "an argument was written"


def test_a_peer_that_is_wrong_is_never_timed(
    libraries: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A causal mask aligned to the left, as flash-attn before 2.1 had it."""

    def left_aligned(q: Any, k_cache: Any, v_cache: Any, **options: Any) -> Any:
        n = q.shape[1]
        counts = torch.full_like(options["cache_seqlens"], n)
        return fake_libraries.flash_attn_with_kvcache(
            q, k_cache, v_cache, **{**options, "cache_seqlens": counts}
        )

    monkeypatch.setattr("flash_attn.flash_attn_with_kvcache", left_aligned)
    made, cuda = case("causal_attention", "a later chunk"), FakeCuda()
    settings = ops.Settings(budget=Budget(1e9, 2, 2))
    asked = ("flash-attn", "flashinfer", "liger")
    monkeypatch.setattr(cases.backends, "device_of", lambda _: "cuda")
    wrong, right, without = ops.measure_case(made, asked, TOP, settings, 0, timer=timer(cuda))
    assert wrong.status == "wrong" and wrong.seconds == () and wrong.backend == "flash-attn"
    assert (right.status, right.kernel, right.launch) == ("ok", "flashinfer", "eager")
    assert without.status == "falls back" and "beside causal_attention" in without.reason


def test_a_peer_that_cannot_make_its_plan_fails_in_its_row(
    libraries: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def plan(*_: Any, **__: Any) -> None:
        raise ValueError("Unsupported page size")

    monkeypatch.setattr(fake_libraries.PagedDecode, "plan", plan)
    made = case("decode_attention", "unequal")
    settings = ops.Settings(budget=Budget(1e9, 2, 2))
    (row,) = ops.measure_case(made, ("flashinfer",), TOP, settings, 0, timer=timer(FakeCuda()))
    assert row.status == "fails" and "Unsupported page size" in row.reason and not row.seconds


def test_what_a_peer_does_not_take_is_a_reason(
    libraries: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reason(peer: str, op: str, name: str, dtype: torch.dtype = torch.bfloat16) -> str:
        made = Case(REGISTRY[op], Sample(name, CALLS[op][name], "bench"), dtype)
        return str(refusal(made.spec, peer, made.flat()))

    assert reason("flash-attn", "tile_attention", "batch", torch.float32).endswith("fp16 and bf16")
    assert "beside swiglu" in reason("flashinfer", "swiglu", "rows")
    monkeypatch.setitem(CALLS["tile_attention"], "72", lambda m: _tiles(m, None, 72))
    assert "heads have 72 channels" in reason("flashinfer", "tile_attention", "72")
    assert reason("flash-attn", "tile_attention", "72") == "None"
    monkeypatch.setattr(peers, "find_spec", lambda _: None)
    assert reason("liger", "swiglu", "rows") == "liger_kernel is not installed"
    monkeypatch.setattr(peers.backends, "device_of", lambda _: "cpu")
    assert "use --device cuda" in reason("liger", "swiglu", "rows")
    assert backends is peers.backends
