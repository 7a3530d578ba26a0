"""Timing on a GPU, with stand-ins for torch.cuda: no GPU gives these times."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from flashvl_bench import cases, ops, own, report
from flashvl_bench.cases import Case
from flashvl_bench.gpu.ceilings import GpuCeilings
from flashvl_bench.gpu.timing import QUEUED, DeviceTimer, capture
from flashvl_bench.timing import Budget, Contender, interleave
from flashvl_kernels import backends
from flashvl_kernels.ops import rms_norm
from flashvl_kernels.spec import Cost, Sample, call
from tests.bench.fake_gpu import LAUNCH, FakeCuda, Written

SPEC = rms_norm.SPEC
BANDWIDTH = 1e12
TOP = GpuCeilings(BANDWIDTH, BANDWIDTH, dict.fromkeys(("bf16", "fp16", "fp32"), 1e15), 1, {}, 1e12)
SMALL = Sample("small", lambda m: call(m.normal(64, 96), m.normal(96)), "bench")
CASE = Case(SPEC, SMALL, torch.float32)
SETTINGS = ops.Settings(budget=Budget(seconds=1e9, least=2, most=2))
X = torch.linspace(-1, 1, 4096)


@pytest.fixture
def cuda() -> FakeCuda:
    return FakeCuda()


def timer(cuda: FakeCuda) -> DeviceTimer:
    made = DeviceTimer(1 << 10, "cpu", cuda)
    made._written = Written(cuda)  # type: ignore[assignment]
    return made


def double(cuda: FakeCuda, seconds: float = 1e-3, off: float = 0.0) -> Callable[[Tensor], Tensor]:
    """A kernel that doubles, wrong by `off`."""

    def run(x: Tensor) -> Tensor:
        out = torch.empty_like(x)
        cuda.kernel("double", seconds, lambda: out.copy_(x * 2 + off))
        return out

    return run


def waiting(cuda: FakeCuda) -> Callable[[Tensor], Tensor]:
    """The same after a look at a value, as `lengths.tolist()` has one."""
    run = double(cuda)

    def wait(x: Tensor) -> Tensor:
        cuda.wait()
        return run(x)

    return wait


# ---- one round ---------------------------------------------------------------------------------


def test_each_call_lies_between_two_events_after_a_write(cuda: FakeCuda) -> None:
    """Calls of both sides in turns, all queued before the host waits once."""
    times, sides = timer(cuda), [Contender("ours", double(cuda)), Contender("it", waiting(cuda))]
    rotation = times.rotation((X,), warm=False)
    assert times.prepare(sides, rotation) == {"ours": "graph", "it": "eager"}
    cuda.log.clear()
    seconds = times.round(sides, rotation)
    ours, it = (
        ["write", "event", "replay", "double", "event"],
        ["write", "event", "double", "event"],
    )
    assert cuda.log == [*(ours + it) * QUEUED, "synchronize"]
    assert [len(each) for each in seconds] == [QUEUED, QUEUED]
    assert seconds[0] == pytest.approx([1e-3] * QUEUED), "neither the write nor a launch is in it"
    assert seconds[1] == pytest.approx([1e-3 + LAUNCH] * QUEUED)
    assert rotation.copies == 1 and rotation.sweeps


def test_a_warm_call_follows_itself(cuda: FakeCuda) -> None:
    times, sides = timer(cuda), [Contender("ours", double(cuda))]
    rotation = times.rotation((X,), warm=True)
    times.prepare(sides, rotation)
    cuda.log.clear()
    assert times.round(sides, rotation)[0] == pytest.approx([1e-3] * QUEUED)
    assert cuda.log[:6] == ["write", "replay", "double", "event", "replay", "double"]
    assert not rotation.sweeps


def test_contenders_take_turns_and_say_how_they_were_launched(cuda: FakeCuda) -> None:
    pair = [Contender("a", double(cuda, 1e-3)), Contender("b", double(cuda, 3e-3))]
    times = timer(cuda)
    rotation = times.rotation((X,), warm=False)
    found = interleave(pair, rotation, Budget(seconds=0.02, least=2, most=50), timer=times)
    assert found["a"].launch == found["b"].launch == "graph"
    assert len(found["a"].seconds) == len(found["b"].seconds) == 3 * QUEUED
    assert (found["a"].median, found["b"].median) == pytest.approx((1e-3, 3e-3))


def test_the_backend_is_in_force_while_a_graph_is_captured(cuda: FakeCuda) -> None:
    seen: list[str] = []

    def run(x: Tensor) -> Tensor:
        seen.append(backends.preference("cuda")[0])
        return double(cuda)(x)

    side = Contender("torch", run, lambda: backends.backend("torch"))
    times = timer(cuda)
    times.prepare([side], times.rotation((X,), warm=False))
    assert set(seen) == {"torch"}


# ---- graphs ------------------------------------------------------------------------------------


def captured(cuda: FakeCuda, run: Callable[..., Any], x: Tensor = X) -> Any:
    found = capture(Contender("it", run), (x,), cuda)
    assert cuda.current == "default stream" and cuda.capturing is None and cuda.mode == 0
    return found


def test_a_call_that_can_be_captured_is(cuda: FakeCuda) -> None:
    assert len(captured(cuda, double(cuda)).kernels) == 1


def test_a_call_that_waits_is_found_before_a_capture(cuda: FakeCuda) -> None:
    begun: list[str] = []
    cuda.CUDAGraph = lambda: begun.append("a graph")  # type: ignore[assignment, method-assign]
    assert captured(cuda, waiting(cuda)) is None
    assert not begun


def test_a_capture_that_fails_leaves_nothing_behind(cuda: FakeCuda) -> None:
    def refuses(x: Tensor) -> Tensor:
        if cuda.capturing is not None:
            raise RuntimeError("operation not permitted when stream is capturing")
        return double(cuda)(x)

    assert captured(cuda, refuses) is None


def test_a_graph_without_the_kernel_is_not_used(cuda: FakeCuda) -> None:
    """Launched on another stream it would not be in the graph, which would take no time."""
    cuda.elsewhere = True
    assert captured(cuda, double(cuda)) is None


def test_a_graph_that_gives_something_else_is_not_used(cuda: FakeCuda) -> None:
    calls: list[int] = []

    def counts(x: Tensor) -> Tensor:
        calls.append(0)
        return double(cuda, off=float(len(calls)))(x)

    assert captured(cuda, counts) is None


def test_a_function_that_returns_its_argument_is_called(cuda: FakeCuda) -> None:
    """The check of a graph writes into results."""
    x = X.clone()
    assert captured(cuda, lambda x: x, x) is None
    assert torch.equal(x, X)


def test_numbers_that_are_none_compare_as_what_they_are(cuda: FakeCuda) -> None:
    assert captured(cuda, double(cuda), torch.tensor([1.0, float("nan"), float("inf")])) is not None


def test_the_stand_in_has_names_of_torch_cuda_and_no_other(cuda: FakeCuda) -> None:
    own_names = {"kernel", "wait", "now", "log", "mode", "current", "capturing", "elsewhere"}
    for name in {name for name in dir(cuda) if not name.startswith("_")} - own_names:
        assert hasattr(torch.cuda, name), name
    assert next(iter(inspect.signature(torch.cuda.graph).parameters)) == "cuda_graph"
    assert "stream" in inspect.signature(torch.cuda.graph).parameters
    known = torch._C._CudaDeviceProperties if hasattr(torch._C, "_CudaDeviceProperties") else None
    for name in vars(cuda.get_device_properties(0)):
        assert known is None or name in ("gcnArchName", "uuid") or hasattr(known, name), name


# ---- rows --------------------------------------------------------------------------------------


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Any]], None]:
    """Puts a function in the place of rms_norm's kernel; the tensors of a test lie on the CPU."""
    monkeypatch.setattr(ops, "refusal", lambda *_: None)

    def put(run: Callable[..., Any]) -> None:
        monkeypatch.setattr(ops, "runner", lambda spec, name, flat: Contender(name, run))
        monkeypatch.setattr(ops, "kernel_name", lambda *_: ("cuda", "planted"))

    return put


def normalise(cuda: FakeCuda, seconds: float, off: float = 0.0) -> Callable[..., Any]:
    def run(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None) -> Any:
        out, nothing = torch.empty_like(x), x.new_empty(0)
        work = lambda: out.copy_(SPEC.reference(x, weight, eps, residual)[0] + off)  # noqa: E731
        cuda.kernel("rms_norm", seconds, work)
        return out, nothing

    return run


def measured(cuda: FakeCuda) -> ops.Row:
    (row,) = ops.measure_case(CASE, ("cuda",), TOP, SETTINGS, 0, timer=timer(cuda))
    return row


def test_twice_the_bytes_show_half_the_fraction(cuda: FakeCuda, install: Any) -> None:
    needed = SPEC.cost(*CASE.flat()).bytes / BANDWIDTH
    fractions = []
    for times_the_bytes in (1, 2):
        install(normalise(cuda, times_the_bytes * needed))
        row = measured(cuda)
        assert (row.status, row.launch, row.plain_launch) == ("ok", "graph", "eager")
        assert len(row.seconds) == len(row.plain_seconds) == 2 * QUEUED
        fractions.append(row.fraction)
    assert fractions == pytest.approx([1.0, 0.5], rel=0.05)
    assert report.cells(row)[-1] == "graph (plain: eager)"


def test_a_wrong_kernel_is_never_timed(cuda: FakeCuda, install: Any) -> None:
    install(normalise(cuda, 1e-3, off=0.01))
    row = measured(cuda)
    assert row.status == "wrong" and row.seconds == () and row.launch == ""
    assert "event" not in cuda.log and "replay" not in cuda.log


def test_a_kernel_that_raises_is_never_timed(cuda: FakeCuda, install: Any) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("an illegal memory access")

    install(broken)
    row = measured(cuda)
    assert row.status == "fails" and row.seconds == () and "event" not in cuda.log


def test_a_function_of_ones_own(cuda: FakeCuda) -> None:
    cost = Cost(X.nbytes, X.nbytes, X.numel())
    options = {"budget": Budget(1e9, 2, 2), "top": TOP, "timer": timer(cuda), "cost": cost}
    seconds = 2 * cost.bytes / BANDWIDTH
    row = own.bench_op(double(cuda, seconds), (X,), reference=lambda x: x * 2, **options)
    assert row.fraction == pytest.approx(0.5, rel=0.05)
    assert (row.launch, row.reference_launch) == ("graph", "eager")
    assert str(row).endswith("graph (plain: eager)")
    wrong = own.bench_op(double(cuda, off=0.1), (X,), reference=lambda x: x * 2, **options)
    assert wrong.status == "wrong" and wrong.seconds == ()


def test_the_backends_of_a_gpu_are_asked_for() -> None:
    assert cases.asked_backends(SPEC, (), "cuda") == ("cuda", "triton", "torch")
    assert cases.asked_backends(SPEC) == ("cpu", "torch")
    made = next(cases.select(("rms_norm",), ("bf16",), device="cuda"))
    assert made.device == "cuda" and made.flat()[0].device.type == "cpu"
    flat = (torch.zeros(6, 4).t()[:, ::2], None, 1e-6)
    moved = cases.placed(flat, "meta")
    assert moved[0].device.type == "meta" and moved[0].stride() == flat[0].stride()
    assert moved[1:] == flat[1:] and cases.placed(flat, "cpu") is flat
    assert replace(CASE, device="cuda").name == CASE.name
