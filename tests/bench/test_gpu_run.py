"""`flashvl-bench ops --device cuda` on a made-up GPU: ceilings, clocks, the file and the pages."""

from __future__ import annotations

import json
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from flashvl_bench import cli, compare, ops, schema
from flashvl_bench.gpu import ceilings, state, target
from flashvl_bench.gpu.state import State
from flashvl_bench.page import data, html, speed
from tests.bench.fake_gpu import FakeCuda, Written, smi
from tests.bench.test_device_timing import SMALL, SPEC, TOP

COOL, HOT = (
    "1980, 2619, 45, 650.10, 0x0000000000000000",
    "1410, 2619, 86, 699.5, 0x0000000000000024",
)


@pytest.fixture
def cuda() -> FakeCuda:
    return FakeCuda()


# ---- ceilings and clocks -----------------------------------------------------------------------


def test_ceilings_are_the_best_of_many_calls(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ceilings, "SMALLEST_BUFFER", 1 << 16)
    monkeypatch.setattr(ceilings, "SMALLEST_GEMM", 32)
    monkeypatch.setattr(ceilings, "LARGEST_GEMM", 64)
    calls = iter(range(10**6))

    def record(event: Any) -> None:
        cuda.now += 2e-3 if next(calls) % 4 < 2 else 1e-3  # every other call is disturbed
        event.at = cuda.now

    monkeypatch.setattr("tests.bench.fake_gpu.Event.record", record)
    top = ceilings.measure(1 << 20, quick=True, device="cpu", cuda=cuda)
    size = ceilings.buffer_bytes(1 << 20)
    assert size > 4 << 20
    assert (top.read, top.copy) == pytest.approx((size / 1e-3, 2 * size / 1e-3))
    assert top.gemm["bf16"] == pytest.approx(2 * 64**3 / 1e-3) and top.loops == {}
    assert "torch GEMM in TFLOP/s: bf16" in top.line() and "registers" not in top.line()


def test_the_clocks_are_read() -> None:
    driver, found = state.read("GPU-1234-5678", smi(HOT))
    assert driver == "580.65.06"
    told = ("power cap (software)", "thermal slowdown (software)")
    assert found == State(1410, 2619, 86, 699.5, told)
    assert found.line().endswith(f"throttled: {', '.join(told)}")
    _, partly = state.read("GPU-1234-5678", smi("[N/A], 2619, 45, [Not Supported], 0x1"))
    assert partly == State(None, 2619, 45, None, ()) and "not throttled" in partly.line()


def test_an_older_driver_is_asked_by_the_older_name() -> None:
    asked = []

    def ask(arguments: Any) -> str:
        asked.append(arguments[2].rpartition(",")[2])
        if "event" in asked[-1]:
            raise subprocess.CalledProcessError(2, "nvidia-smi", "not a valid field to query")
        return f"470.1, {COOL}\n"

    assert state.read("0", ask)[1] == State(1980, 2619, 45, 650.1)
    assert asked == ["clocks_event_reasons.active", "clocks_throttle_reasons.active"]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (FileNotFoundError("nvidia-smi"), "there is no nvidia-smi"),
        (subprocess.TimeoutExpired("nvidia-smi", 20), "timed out"),
        ("No devices were found\n", "nvidia-smi wrote 'No devices were found'"),
    ],
)
def test_a_state_that_is_unknown_says_why(answer: Any, words: str) -> None:
    def ask(_: Any) -> str:
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    found = state.read("0", ask)[1]
    assert words in found.unknown and "unknown" in found.line()
    assert words in state.warnings(asdict(found), asdict(found))[0]


def test_what_makes_figures_doubtful_is_said() -> None:
    cool, hot = (asdict(state.read("GPU-1234-5678", smi(each))[1]) for each in (COOL, HOT))
    assert state.warnings(cool, cool) == []
    assert state.warnings(cool, {**cool, "sm_mhz": 1950.0}) == []
    throttled, moved = state.warnings(cool, hot)
    assert throttled.startswith("throttled after the cases: power cap")
    assert moved == "the SM clock moved from 1980 to 1410 MHz"
    assert "unknown" in state.warnings(cool, None)[0]


# ---- the command -------------------------------------------------------------------------------


def run(cuda: FakeCuda, file: Path, monkeypatch: pytest.MonkeyPatch, after: str = HOT) -> int:
    """`flashvl-bench ops --device cuda` on the made-up GPU."""
    on = target.GpuTarget("cpu", cuda, smi(COOL, after))
    on.timer._written = Written(cuda)  # type: ignore[assignment]
    monkeypatch.setattr(SPEC, "samples", (SMALL,))
    monkeypatch.setattr(ops, "target", lambda _: on)
    monkeypatch.setattr(ops, "placed", lambda flat, _: flat)
    monkeypatch.setattr(target, "missing", lambda: None)
    monkeypatch.setattr(ceilings, "measure", lambda *_: TOP)
    monkeypatch.setattr(ceilings, "keep_busy", lambda *_: None)
    words = ["--op", "rms_norm", "--dtype", "fp32", "--backend", "torch,liger", "--quick"]
    return cli.main(["ops", "--device", "cuda", *words, "--json", str(file)])


def test_the_command_says_what_it_measured_on(
    cuda: FakeCuda,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(cuda, tmp_path / "gpu.json", monkeypatch) == 0
    out = capsys.readouterr().out
    assert "Made-up 100 (sm_90), 132 multiprocessors" in out and "written before each call" in out
    assert "clocks    SM 1980 MHz, memory 2619 MHz, 45 °C, 650 W, not throttled" in out
    assert "WARNING   throttled after the cases: power cap (software)" in out
    assert "WARNING   the SM clock moved from 1980 to 1410 MHz" in out
    document = schema.read(tmp_path / "gpu.json")
    gpu = document["machine"]["gpu"]
    assert (gpu["name"], gpu["driver"], gpu["cache_bytes"]) == ("Made-up 100", "580.65.06", 1 << 20)
    assert gpu["before"]["sm_mhz"] == 1980 and gpu["after"]["throttled"]
    ours, liger = document["rows"]
    assert (ours["status"], ours["launch"], ours["swept"]) == ("ok", "eager", True)
    assert liger["status"] == "falls back" and liger["launch"] == ""


def test_pages_show_the_gpu_and_warn(
    cuda: FakeCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "gpu.json"
    run(cuda, file, monkeypatch)
    document = json.loads(file.read_text())
    document["rows"][0] |= {"backend": "cuda", "launch": "graph"}
    file.write_text(json.dumps(document))
    found = data.devices([file])
    assert found[0].name.startswith("Made-up 100 (sm_90")
    page = html.page(found, tmp_path)
    assert "the SM clock moved from 1980 to 1410 MHz" in page and "graph (plain: eager)" in page
    assert "GPU driver" in page and "launch</button>" in page
    markdown = speed.speed_page(found)
    assert "| launch |" in markdown and "graph (plain: eager) |" in markdown
    assert "**Warning:** the SM clock moved" in markdown


def test_a_steady_gpu_gives_no_warning(
    cuda: FakeCuda,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run(cuda, tmp_path / "gpu.json", monkeypatch, COOL)
    assert "WARNING" not in capsys.readouterr().out
    assert "Warning" not in html.page(data.devices([tmp_path / "gpu.json"]), tmp_path)


def test_a_time_of_no_gpu_is_refused(
    cuda: FakeCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(cuda, tmp_path / "gpu.json", monkeypatch)
    text = (tmp_path / "gpu.json").read_text()
    for change, error in (
        (lambda d: d["machine"].update(gpu=None), "machine.gpu is missing, but"),
        (lambda d: d["settings"].update(device="cpu"), "gpu is 'Made-up 100', but"),
        (lambda d: d["settings"].update(device="tpu"), "device is 'tpu'; needs cpu, cuda"),
        (lambda d: d["rows"][0].update(launch=""), r"rows\[0\].launch is ''"),
        (lambda d: d["rows"][1].update(launch="graph"), r"rows\[1\].launch is 'graph'"),
        (lambda d: d["machine"]["gpu"].update(before={}), "gpu.before.sm_mhz is missing"),
    ):
        document = json.loads(text)
        change(document)
        with pytest.raises(schema.SchemaError, match=error):
            schema.validate(document)


def test_runs_on_two_gpus_or_launched_otherwise_do_not_compare(
    cuda: FakeCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(cuda, tmp_path / "gpu.json", monkeypatch)
    before, after = (json.loads((tmp_path / "gpu.json").read_text()) for _ in range(2))
    assert compare.compare(before, after)[0].verdict == "same"
    after["rows"][0]["launch"] = "graph"
    change = compare.compare(before, after)[0]
    assert change.verdict == "unmeasured" and "launch is eager before, graph after" in change.reason
    after["machine"]["gpu"]["name"] = "Another"
    with pytest.raises(compare.CompareError, match="GPU differs in name"):
        compare.compare(before, after)


def test_without_a_gpu_the_command_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        cli.main(["ops", "--device", "cuda", "--quick"])
    assert ended.value.code == 2
    assert "--device is 'cuda', but PyTorch" in capsys.readouterr().err
