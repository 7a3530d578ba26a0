"""What the tuner does around a call: plans, compiles ahead, times by graphs, reports. No GPU: the
target is told to the compiling process, and the timer's `cuda` is the test's own."""

from __future__ import annotations

import json
import math
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from flashvl_kernels import triton as backend

if reason := backend.missing():
    pytest.skip(reason, allow_module_level=True)

from flashvl_kernels.gpu import A100, H100
from flashvl_kernels.spec import REGISTRY
from flashvl_kernels.triton import ahead, launch, tune, tuned
from flashvl_kernels.triton.graph_timer import GraphTimer
from flashvl_kernels.triton.launch import Tile

TARGET = ("cuda", 90, 32)
SWIGLU = REGISTRY["swiglu"]


def plans(op: str) -> list[tune.Plan]:
    seen: set[str] = set()
    return [tune.plan(call, H100, seen) for call in tune.calls([REGISTRY[op]], [torch.bfloat16])]


def test_products_are_tuned_before_what_reads_memory_once() -> None:
    found = tune.calls([REGISTRY[op] for op in ("swiglu", "linear", "gelu_mlp")], [torch.bfloat16])
    assert list(dict.fromkeys(call.spec.name for call in found)) == ["gelu_mlp", "linear", "swiglu"]


def test_every_choice_is_planned_once_with_what_it_launches() -> None:
    found = plans("gelu_mlp")
    keys = [key for each in found for key in each.space]
    assert len(keys) == len(set(keys)) and any(key.startswith("product_kernel") for key in keys)
    (wide, *_) = found[0].space.values()
    for choice, kernels in wide:
        names = [kernel.name for kernel in kernels]
        assert names[:2] == ["layer_norm_kernel", "product_kernel"]
        constants = dict(kernels[1].constants)
        assert (constants["ROWS"], constants["UNITS"]) == (choice.rows, choice.units)


def test_a_choice_is_tried_only_where_all_its_kernels_are_compiled() -> None:
    each = plans("swiglu")[0]
    ((key, tried),) = each.space.items()
    kernels = [kernel for _, (kernel,) in tried]
    reasons = dict.fromkeys(kernels[:3], "") | {kernels[3]: "CompilationError: no"}
    assert each.compiled(reasons) == {key: [choice for choice, _ in tried[:3]]}


def test_integers_of_a_kind_are_one_kernel() -> None:
    kinds = [ahead._kind(n) for n in (1, 0, 16, 48, 17, 3, 2**31 - 16, 2**31, 2**31 + 1)]
    assert kinds == [1, 16, 16, 16, 17, 17, 16, 16 + 2**32, 17 + 2**32]


def test_kernels_are_compiled_in_another_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    with ahead.recording(H100) as launched:
        backend.module("swiglu").run(torch.ones(8, 64, dtype=torch.bfloat16, device="meta"))
    (kernel,) = launched
    broken = ahead.Kernel(kernel.module, kernel.name, kernel.args, (("ROWS", 3),))
    reasons = ahead.compile_all([kernel, broken], TARGET, 1, math.inf)
    assert reasons[kernel] == "" and reasons[broken]
    assert list(tmp_path.rglob("*.cubin")), "where a launch finds it"
    assert launch.describe(torch.device("meta")) != A100, "the recording is over"


def test_what_the_time_does_not_reach_is_not_compiled() -> None:
    kernel = ahead.Kernel("nowhere", "nothing", (), ())
    other = [ahead.Kernel("nowhere", f"nothing {n}", (), ()) for n in range(50)]
    reasons = ahead.compile_all([kernel, *other], TARGET, 1, time.monotonic())
    assert len(reasons) < 51


class Cuda:
    """`torch.cuda` as the timer uses it: a clock that replays and calls move on."""

    def __init__(self, captures: bool = True) -> None:
        self.captures = captures
        self.clock = 0.0
        self.capturing = False
        self.written: list[float] = []

    def Stream(self) -> Any:
        return SimpleNamespace(synchronize=lambda: None)

    @contextmanager
    def stream(self, _: Any) -> Any:
        yield

    def synchronize(self) -> None:
        pass

    def current_device(self) -> int:
        return 0

    def get_device_properties(self, _: int) -> Any:
        return SimpleNamespace(L2_cache_size=1024)

    def graph_pool_handle(self) -> tuple[int, int]:
        return (0, 1)

    def CUDAGraph(self) -> Any:
        def begin(pool: Any) -> None:
            if not self.captures:
                raise RuntimeError("not permitted")
            self.capturing = True

        def end() -> None:
            self.capturing = False

        def replay() -> None:
            self.clock += 2.0

        return SimpleNamespace(capture_begin=begin, capture_end=end, replay=replay)

    def Event(self, enable_timing: bool) -> Any:
        event = SimpleNamespace(at=0.0)
        event.record = lambda: setattr(event, "at", self.clock)
        event.elapsed_time = lambda stop: stop.at - event.at
        return event


@pytest.mark.parametrize(("captures", "milliseconds"), [(True, 2.0), (False, 5.0)])
def test_a_graph_is_timed_or_the_call_itself(
    monkeypatch: pytest.MonkeyPatch, captures: bool, milliseconds: float
) -> None:
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda n, dtype, device: empty(n, dtype=dtype))
    cuda = Cuda(captures)
    timer = GraphTimer(cuda=cuda)

    def run() -> None:
        if not cuda.capturing:
            cuda.clock += 5.0

    assert timer(run) == milliseconds
    assert timer.eager == (0 if captures else 1)


def test_the_report_has_all_times_and_the_largest_gain_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(tuned.VARIABLE, str(tmp_path))
    out = tmp_path / "times.json"
    sample = next(s for s in SWIGLU.samples if s.kind == "bench")
    call = tune.Call(SWIGLU, sample, torch.bfloat16)
    model, other = Tile(1, 64, 1), Tile(2, 64, 1)
    small = tune.Outcome("a 1", model, 1.1, other, 1.0, [tune.Trial(other, 1.0)])
    large = tune.Outcome("b 1", model, 2.0, other, 1.0, [tune.Trial(other, 1.0)])
    kept = tune.Outcome("c 1", model, 2.0, model, 2.0, [tune.Trial(other, None, "spills")])
    report = tune.Report("a GPU", out)
    report.add(call, [small, large, kept])
    capsys.readouterr()
    report.summary()
    printed = capsys.readouterr().out
    assert printed.index("2.00x") < printed.index("1.10x") < printed.index("1.00x")
    content = json.loads(out.read_text())
    numbers = {"rows": 2, "columns": 64, "warps": 1}
    assert content["choices"] == {"a 1": numbers, "b 1": numbers} == tuned.table("a GPU")
    assert content["measured"][2]["trials"] == [{"choice": numbers, "ms": None, "reason": "spills"}]
    tuned.table.cache_clear()
