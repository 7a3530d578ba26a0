"""The op benchmark tells the truth, on a clock that only kernels advance."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from flashvl_bench import ceilings, cli, ops, report, schema
from flashvl_bench.cases import Case, refusal
from flashvl_bench.ceilings import Ceilings
from flashvl_bench.timing import Budget, Contender, Rotation, interleave
from flashvl_kernels import backends, extension
from flashvl_kernels.ops import rms_norm
from flashvl_kernels.spec import Cost, Sample, call

SPEC = rms_norm.SPEC
BANDWIDTH = 10e9
RATES = {"bf16": 1e15, "fp16": 1e15, "fp32": 1e15}
TOP = Ceilings(BANDWIDTH, BANDWIDTH, RATES, 1, {}, BANDWIDTH)
SMALL = Sample("small", lambda m: call(m.normal(64, 96), m.normal(96)), "bench")
CASE = Case(SPEC, SMALL, torch.float32)
SETTINGS = ops.Settings(budget=Budget(seconds=1e9, least=3, most=4))


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        self.now += 1e-12  # no call takes no time at all
        return self.now


def _pretend_to_have_the_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extension, "EXTENSION", SimpleNamespace(loaded=True, path="", reason=""))
    monkeypatch.setattr(extension, "has", lambda op: True)


Install = Callable[[Callable[..., Any]], None]


@pytest.fixture
def cpu_kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Puts a Python function in the place of rms_norm's CPU kernel."""
    _pretend_to_have_the_extension(monkeypatch)

    def install(run: Callable[..., Any]) -> None:
        monkeypatch.setitem(SPEC._resolved, "cpu", backends.Kernel("cpu", "planted", run))

    yield install


def kernel(clock: Clock, seconds: float, off: float = 0.0) -> Callable[..., Any]:
    """A right kernel (wrong by `off`) that takes `seconds` of the simulated clock."""

    def run(*args: Any) -> tuple[Tensor, Tensor]:
        clock.now += seconds
        y, total = SPEC.reference(*args)
        return y + off, total

    return run


def measured(clock: Clock, *asked: str) -> list[ops.Row]:
    return ops.measure_case(CASE, asked or ("cpu",), TOP, SETTINGS, 1 << 16, clock)


def test_twice_the_bytes_show_half_the_fraction(cpu_kernel: Install) -> None:
    fractions = []
    for times_the_bytes in (1, 2):
        clock = Clock()
        needed = SPEC.cost(*CASE.flat()).bytes / BANDWIDTH
        cpu_kernel(kernel(clock, times_the_bytes * needed))
        (row,) = measured(clock)
        assert (row.status, row.backend, row.kernel) == ("ok", "cpu", "planted")
        assert row.fraction is not None
        fractions.append(row.fraction)
    assert fractions[0] == pytest.approx(1.0, rel=1e-6)
    assert fractions[1] == pytest.approx(0.5, rel=1e-6)


def test_a_wrong_kernel_never_shows_a_time(cpu_kernel: Install) -> None:
    clock = Clock()
    cpu_kernel(kernel(clock, 1e-3, off=0.01))
    wrong, right = measured(clock, "cpu", "torch")
    assert wrong.status == "wrong" and "rms" in wrong.reason
    assert wrong.median is None and wrong.seconds == () and wrong.fraction is None
    assert report.cells(wrong)[4].startswith("WRONG: output 0")
    assert right.status == "ok" and len(right.seconds) == 4


def test_a_kernel_that_raises_never_shows_a_time(cpu_kernel: Install) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("no such instruction")

    cpu_kernel(broken)
    (row,) = measured(Clock())
    assert row.status == "fails" and row.median is None
    assert report.cells(row)[4] == "FAILS: RuntimeError: no such instruction"


@pytest.mark.parametrize("asked", ["cpu", "auto"])
def test_a_falling_back_case_shows_its_reason(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SPEC, "kernels", {"cpu": lambda *_: "rows of 96 are not supported"})
    _pretend_to_have_the_extension(monkeypatch)
    (row,) = measured(Clock(), asked)
    assert row.status == "falls back" and row.median is None and row.seconds == ()
    assert "rows of 96 are not supported" in report.cells(row)[4]


def test_an_unclaimed_backend_is_a_fall_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SPEC, "kernels", {})
    reason = refusal(SPEC, "triton", CASE.flat())
    assert reason is not None and "no triton kernel" in reason


def test_torch_compile_is_asked_for_like_a_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """In turns with the others, judged like them; where it fails, its row says so."""
    clock = Clock()
    compiled: list[Any] = []

    def compile(reference: Any, **_: Any) -> Any:
        compiled.append(reference)
        return kernel(clock, 2e-3)

    monkeypatch.setattr(torch, "compile", compile)
    row, torch_row = measured(clock, "torch.compile", "torch")
    assert compiled == [SPEC.reference] and torch_row.status == "ok"
    assert (row.status, row.backend, row.kernel) == ("ok", "torch.compile", "inductor")
    assert row.median == pytest.approx(2e-3)
    monkeypatch.setattr(torch, "compile", lambda *_, **__: kernel(clock, 1e-3, off=0.01))
    (wrong,) = measured(clock, "torch.compile")
    assert wrong.status == "wrong" and wrong.median is None

    def broken(*_: Any) -> Any:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: broken)
    (fails,) = measured(clock, "torch.compile")
    assert fails.status == "fails" and "no compiler" in fails.reason


def test_contenders_take_turns_on_other_memory_each_time() -> None:
    clock, seen, order = Clock(), [], []

    def contender(name: str, seconds: float) -> Contender:
        def run(x: Tensor) -> None:
            order.append(name)
            seen.append(x.data_ptr())
            clock.now += seconds

        return Contender(name, run)

    rotation = Rotation((torch.zeros(256),), cache_bytes=4096)
    assert rotation.copies == 8  # twice the cache over 1 KiB of arguments
    pair = [contender("a", 1.0), contender("b", 3.0)]
    times = interleave(pair, rotation, Budget(seconds=4.0, least=2, most=50), clock)
    assert times["a"].seconds == pytest.approx((1.0, 1.0))
    assert times["b"].seconds == pytest.approx((3.0, 3.0))
    assert order == ["a", "b", "b", "a"]
    assert len(set(seen)) == len(seen) == 4
    assert len(interleave(pair, rotation, Budget(0.5, 5, 50), clock)["a"].seconds) == 1
    warm = Rotation((torch.zeros(256),), cache_bytes=4096, warm=True)
    assert warm.take()[0] is warm.take()[0]
    small = Rotation((torch.zeros(1),), cache_bytes=1 << 20)
    assert small.sweeps
    taken = [small.take()[0].data_ptr() for _ in range(small.copies)]
    assert len(set(taken)) == small.copies, "each copy once between two sweeps"


def test_median_and_quartiles() -> None:
    from flashvl_bench.timing import Times

    times = Times((5.0, 1.0, 2.0, 3.0, 4.0))
    assert (times.median, times.iqr) == (3.0, 2.0)
    assert Times((7.0,)).iqr == 0.0


def test_buffers_go_beyond_the_cache_and_stay_small_beside_the_memory() -> None:
    gib = 1 << 30
    assert ceilings.buffer_bytes(480 << 20, 24 * gib) == 960 << 20
    assert ceilings.buffer_bytes(1 << 20, 24 * gib) == 128 << 20
    assert ceilings.buffer_bytes(480 << 20, 8 * gib) == gib // 2


def test_ceilings_are_positive_and_bound_a_call() -> None:
    top = ceilings.measure(cache_bytes=1 << 20, quick=True)
    assert top.read > 1e8 and top.copy > 1e8
    assert set(top.gemm) == {"bf16", "fp16", "fp32"} and min(top.gemm.values()) > 1e7
    assert top.compute("bf16") == max(top.gemm["bf16"], top.gemm["fp32"], *top.loops.values())
    if extension.EXTENSION.loaded:
        assert top.loops["fma_f32"] > 1e8 and top.compute("fp16") >= top.loops["fma_f32"]
        assert ("tiles_bf16" in top.loops) == (extension.cpu_level() == "amx")
    seconds, bound = TOP.least_time(Cost(30, 10, 0), "fp32")
    assert seconds == pytest.approx(40 / BANDWIDTH) and bound == "memory"
    seconds, bound = TOP.least_time(Cost(1, 1, 10**15), "fp32")
    assert seconds == pytest.approx(1.0) and bound == "compute"


def test_the_command_writes_a_valid_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(SPEC, "samples", (SMALL,))
    monkeypatch.setattr(ceilings, "measure", lambda *_: TOP)
    file = tmp_path / "ops.json"
    arguments = ["ops", "--op", "rms_norm", "--dtype", "fp32", "--backend", "torch", "--quick"]
    assert cli.main([*arguments, "--json", str(file)]) == 0
    out = capsys.readouterr().out
    assert "cold cache" in out and "ceilings" in out and "rms_norm" in out
    document = schema.read(file)
    (row,) = document["rows"]
    assert (row["op"], row["backend"], row["status"]) == ("rms_norm", "torch", "ok")
    assert document["machine"]["torch"] == torch.__version__
    assert len(row["seconds"]) == len(row["plain_seconds"]) >= 3


def test_a_run_that_is_stopped_keeps_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGTERM in the middle, as a time limit sends it."""
    whole = ops.measure

    def stopped(*args: Any) -> Iterator[ops.Row]:
        yield next(whole(*args))
        os.kill(os.getpid(), signal.SIGTERM)
        yield from whole(*args)

    monkeypatch.setattr(ops, "measure", stopped)
    path = tmp_path / "r.json"
    handler = signal.getsignal(signal.SIGTERM)
    command = ["ops", "--quick", "--op", "swiglu", "--backend", "torch", "--json", str(path)]
    assert cli.main(command) == 130
    assert "SIGTERM after 1 rows" in capsys.readouterr().out
    assert len(schema.read(path)["rows"]) == 1
    assert signal.getsignal(signal.SIGTERM) == handler


def test_a_bad_argument_is_an_error_that_names_it(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, text in (
        (["ops", "--op", "rmsnorm"], "--op is 'rmsnorm'"),
        (["ops", "--dtype", "int8"], "--dtype is 'int8'"),
        (["ops", "--backend", "gpu"], "--backend is 'gpu'"),
        (["ops", "--seconds", "-1"], "--seconds is -1"),
        (["model", "--only", "audio"], "--only is 'audio'"),
    ):
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        assert ended.value.code == 2
        assert text in capsys.readouterr().err


def _document(**changes: Any) -> dict[str, Any]:
    row = ops.asdict(ops.Row("rms_norm", "small", "", "fp32", "cpu", "falls back", "a reason"))
    row |= changes.pop("row", {})
    document = {
        "schema": "flashvl-bench/ops",
        "version": schema.VERSION,
        "machine": ops.asdict(ops.machine.facts()),
        "settings": {**ops.asdict(ops.Settings()), "allocator_keeps_memory": True},
        "ceilings": ops.asdict(TOP),
        "ceilings_end": ops.asdict(TOP),
        "rows": [row],
    }
    return json.loads(json.dumps(document | changes))


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"version": 99}, "version is 99; this flashvl-bench reads version 3"),
        ({"schema": "other"}, "not a result file"),
        ({"extra": 1}, r"file\.extra is unknown"),
        ({"machine": {}}, r"file\.machine\.cpu is missing"),
        ({"row": {"flops": "many"}}, r"rows\[0\]\.flops is 'many'; needs int"),
        ({"row": {"flops": True}}, r"rows\[0\]\.flops is True"),
        ({"row": {"seconds": [1.0], "median": 1.0}}, "has a time, but its status is 'falls back'"),
        ({"row": {"status": "ok"}}, "has no time above 0"),
        ({"row": {"status": "ok", "seconds": [2.0, -1.0]}}, "has no time above 0"),
        (
            {"row": {"status": "ok", "seconds": [2.0], "median": 1.0}},
            "median is 1.0; its times say",
        ),
        ({"row": {"status": "fine"}}, "status is 'fine'; needs one of ok, falls back"),
        ({"row": {"flops": 10**400}}, r"rows\[0\]\.flops is 1000.*needs int"),
        ({"row": {"copies": -1}}, "copies is -1; needs at least 0"),
        ({"row": {"reason": "a" * 100_000}}, r"rows\[0\]\.reason is"),
        ({"schema": ["flashvl-bench/ops"]}, "not a result file"),
        ({"schema": {}}, "not a result file"),
        ({"version": "2"}, "version is '2'"),
        ({"ceilings": None}, "ceilings is a NoneType; needs an object"),
    ],
)
def test_a_file_that_is_not_what_it_says_is_refused(changes: Any, error: str) -> None:
    schema.validate(_document())
    with pytest.raises(schema.SchemaError, match=error):
        schema.validate(_document(**changes))


def test_a_broken_file_is_refused_with_its_name(tmp_path: Path) -> None:
    file = tmp_path / "cut.json"
    text = json.dumps(_document())
    for content, error in (
        (text[: len(text) // 2], "cut short"),
        (text.replace('"read": 1', '"read": NaN, "x": 1'), "holds NaN"),
        ("[" * 100_000, "not JSON"),
        (text.replace('"read": 10000000000.0', '"read": 1e999'), "read is inf"),
        (text.replace('"cores"', '"cpu": "another", "cores"'), "has the key 'cpu' twice"),
        (text.replace('"flops": 0', f'"flops": {"9" * 5000}'), "not JSON"),
        ("\x00\x01", "not JSON"),
    ):
        file.write_text(content)
        with pytest.raises(schema.SchemaError, match=error):
            schema.read(file)
    with pytest.raises(schema.SchemaError, match="cannot be read"):
        schema.read(tmp_path / "absent.json")
    file.write_bytes(b"\xff\xfe{}")
    with pytest.raises(schema.SchemaError, match="not JSON"):
        schema.read(file)
    os.mkfifo(tmp_path / "pipe")  # reading it would wait for ever
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(schema.SchemaError, match="no regular file"):
            schema.read(path)


def test_a_file_that_is_too_large_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "large.json"
    file.write_text(json.dumps(_document()))
    monkeypatch.setattr(schema, "LARGEST_FILE", file.stat().st_size - 1)
    with pytest.raises(schema.SchemaError, match="at most"):
        schema.read(file)
