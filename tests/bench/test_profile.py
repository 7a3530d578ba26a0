"""The profile adds up, sees every op call, and its files are what their viewers read."""

from __future__ import annotations

import copy
import json
import shlex
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
import torch

import flashvl_kernels as fvk
from flashvl import generate
from flashvl.decoder import Decoder
from flashvl_bench import cli
from flashvl_bench import schema as result_files
from flashvl_bench.ceilings import Ceilings
from flashvl_bench.profile import answer as profile
from flashvl_bench.profile import flame as profile_flame
from flashvl_bench.profile import ncu as profile_ncu
from flashvl_bench.profile import rows as profile_rows
from flashvl_bench.profile import trace as profile_trace
from flashvl_bench.profile.record import ROOT, STAGES, Recorder, watch
from flashvl_kernels import backends
from flashvl_kernels.backends import Kernel
from flashvl_kernels.cuda import plan_module
from flashvl_kernels.ops import rms_norm
from flashvl_kernels.spec import REGISTRY, OpSpec

RATES = {"bf16": 1e12, "fp16": 1e12, "fp32": 1e12}
TOP = Ceilings(1e9, 1e9, RATES, 1, {}, 1e9)
SETTINGS = profile.Settings(tokens=4, repeats=3)


class Clock:
    """Moves only when told to, and by a nanosecond when read."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1e-9
        return self.now


@pytest.fixture(scope="module")
def measured() -> tuple[Recorder, profile.Walls]:
    """One answer of the tiny model."""
    with torch.no_grad():
        return profile.measure(profile.build(SETTINGS), SETTINGS)


def planted(clock: Clock) -> Recorder:
    """An answer of 10 s: a stage of 6 s with three calls of 1 s on two shapes, and 4 s outside."""
    recorder = Recorder(clock)

    def slow(x: torch.Tensor, *rest: Any) -> Any:
        clock.now += 1.0
        return rms_norm.SPEC.reference(x, *rest)

    kernel = Kernel("cpu", "slow", slow)
    with recorder.stage(ROOT):
        clock.now += 4.0
        with recorder.stage("stage"):
            clock.now += 3.0
            for rows in (8, 8, 4):
                recorder.run(
                    rms_norm.SPEC, kernel, (torch.ones(rows, 16), torch.ones(16), 0.1, None)
                )
    return recorder


def test_rows_of_known_times() -> None:
    found = {(row.op, row.shape): row for row in profile_rows.rows(planted(Clock()), TOP)}
    two = found["rms_norm", "8x16"]
    assert (two.where, two.calls, two.backend, two.kernel) == ("stage", 2, "cpu", "slow")
    assert two.seconds == pytest.approx(2.0, abs=1e-6)
    cost = rms_norm.SPEC.cost(torch.ones(8, 16), torch.ones(16), 0.1, None)
    assert two.bytes_read == 2 * cost.bytes_read and two.flops == 2 * cost.flops
    assert two.fraction == pytest.approx(2 * TOP.least_time(cost, "fp32")[0] / 2.0, rel=1e-6)
    assert found["rms_norm", "4x16"].seconds == pytest.approx(1.0, abs=1e-6)
    outside = {
        r.where: r for r in profile_rows.rows(planted(Clock()), TOP) if r.op == "outside of ops"
    }
    assert outside["stage"].seconds == pytest.approx(3.0, abs=1e-6)
    assert outside[ROOT].seconds == pytest.approx(4.0, abs=1e-6)


def test_what_the_recorder_costs_is_its_own_row(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    cost = rms_norm.SPEC.cost

    def dear(*args: Any) -> Any:
        clock.now += 7.0
        return cost(*args)

    monkeypatch.setattr(rms_norm.SPEC, "cost", dear)
    rows = profile_rows.rows(planted(clock), TOP)
    seconds = {(row.where, row.op): row.seconds for row in rows}
    assert seconds[ROOT, "recording"] == pytest.approx(21.0, abs=1e-6)
    assert seconds["stage", "outside of ops"] == pytest.approx(3.0, abs=1e-6)
    assert sum(row.seconds for row in rows) == pytest.approx(31.0, abs=1e-6)


def test_rows_add_up_to_the_wall_time(measured: tuple[Recorder, profile.Walls]) -> None:
    """The wall time is read around the whole call: a span that is counted twice, or left out,
    moves the sum away from it."""
    recorder, walls = measured
    rows = profile_rows.rows(recorder, TOP)
    assert sum(row.seconds for row in rows) == pytest.approx(walls.recorded, rel=0.03)
    assert all(row.seconds >= 0 for row in rows)


def test_a_call_that_is_left_out_does_not_add_up(measured: tuple[Recorder, profile.Walls]) -> None:
    recorder, walls = copy.deepcopy(measured)
    longest = max((s for s in recorder.spans if s.call), key=lambda s: s.seconds)
    longest.parent = -1  # as if its stage did not know of it: counted there, too
    total = sum(row.seconds for row in profile_rows.rows(recorder, TOP))
    assert total == pytest.approx(walls.recorded + longest.seconds, rel=0.03)


def test_every_call_is_seen_and_everything_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    call = OpSpec.__call__

    def count(self: OpSpec, *args: object) -> object:
        calls.append(self.name)
        return call(self, *args)

    monkeypatch.setattr(OpSpec, "__call__", count)
    before = [getattr(owner, name) for owner, name, _ in STAGES], backends.choose
    model, recorder = profile.build(SETTINGS), Recorder()
    image, question = profile.question(SETTINGS)
    with watch(recorder), recorder.stage(ROOT):
        answer = generate.generate(model, image, question, SETTINGS.tokens, ignore_eos=True)
    assert ([getattr(owner, name) for owner, name, _ in STAGES], backends.choose) == before
    assert [span.name for span in recorder.spans if span.call] == calls
    layers = model.config.decoder.layers
    decode = [s for s in recorder.spans if s.call and recorder.stage_of(s) == "decode step"]
    assert len(decode) == 5 * layers * (SETTINGS.tokens - 1)
    assert (
        answer.text
        == model.generate(image, question, max_new_tokens=SETTINGS.tokens, ignore_eos=True).text
    )
    stages = {span.name for span in recorder.spans if span.call is None}
    assert stages == {ROOT, *(stage for _, _, stage in STAGES)}


def test_everything_is_put_back_after_an_error() -> None:
    extend, choose = Decoder.extend, backends.choose
    with pytest.raises(ZeroDivisionError), watch(Recorder()):
        raise ZeroDivisionError
    assert Decoder.extend is extend and backends.choose is choose
    assert not fvk.tape.is_off()


def test_trace(measured: tuple[Recorder, profile.Walls]) -> None:
    recorder, _ = measured
    trace = json.loads(json.dumps(profile_trace.trace(recorder, "title")))
    assert profile_trace.check(trace) == len(recorder.spans)
    ops = [event for event in trace["traceEvents"] if event.get("cat") == "op"]
    assert {event["name"] for event in ops} <= set(REGISTRY)
    assert all(event["args"]["bytes"] > 0 and event["args"]["kernel"] for event in ops)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"ph": "Z"}, "known ph"),
        ({"ts": -1.0}, "has the times"),
        ({"dur": None}, "has the times"),
        ({"dur": 1e12}, "ends after"),
    ],
)
def test_a_trace_that_a_viewer_misreads_is_found(change: dict[str, Any], told: str) -> None:
    trace = profile_trace.trace(planted(Clock()), "title")
    trace["traceEvents"][-1] |= change
    with pytest.raises(profile_trace.TraceError, match=told):
        profile_trace.check(trace)


def test_flame_graph_and_stacks() -> None:
    recorder = planted(Clock())
    paths = profile_trace.stacks(recorder)
    assert paths[ROOT, "stage", "rms_norm", "8x16"] == pytest.approx(2.0, abs=1e-6)
    assert "answer;stage;rms_norm;8x16 2000000" in list(profile_trace.folded(recorder))
    text = profile_flame.svg(paths, frozenset({"rms_norm"}), 'title <&">')
    tree = ElementTree.fromstring(text)
    assert "href" not in text and "script" not in text and "url(" not in text
    names = "{http://www.w3.org/2000/svg}"
    boxes = {
        g.find(f"{names}title").text.partition(":")[0]: g.find(f"{names}rect")
        for g in tree.iter(f"{names}g")
    }  # type: ignore[union-attr]
    whole, op = (float(boxes[name].get("width")) for name in (ROOT, "rms_norm"))  # type: ignore[union-attr, arg-type]
    assert op / whole == pytest.approx(0.3, abs=1e-3)
    assert boxes["rms_norm"].get("class") == "op" and boxes["8x16"].get("class") == "shape"  # type: ignore[union-attr]


def test_command_writes_valid_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profile.ceilings, "measure", lambda *_, **__: TOP)
    folder = tmp_path / "out"
    assert cli.main(["profile", "--tokens", "3", "--repeats", "1", "--out", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "without a tape" not in out and "from a tape where it can" in out
    assert "of the" in out and "outside of ops" in out
    document = result_files.read(folder / "profile.json")
    assert profile_trace.check(json.loads((folder / "trace.json").read_text())) > 50
    ElementTree.parse(folder / "flame.svg")
    assert all(
        line.rpartition(" ")[2].isdigit()
        for line in (folder / "stacks.txt").read_text().splitlines()
    )
    document["rows"] = document["rows"][1:]  # the longest row is gone
    with pytest.raises(result_files.SchemaError, match="add up to"):
        result_files.validate(document)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--config", "/absent"], "/absent"),
        (["--image", "/absent.png"], "absent.png"),
        (["--backend", "warp"], "warp"),
    ],
)
def test_what_cannot_be_profiled_is_told(
    options: list[str],
    told: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(profile.ceilings, "measure", lambda *_, **__: TOP)
    assert cli.main(["profile", "--repeats", "1", *options]) == 2
    assert told in capsys.readouterr().err


# ---- Nsight Compute ----------------------------------------------------------------------------

# Written by hand after the manual of ncu ("Nsight Compute CLI", output pages and --csv): no GPU.
HEAD = (
    '"ID","Process ID","Process Name","Host Name","thread Domain:Push/Pop_Range:PL_Type:PL_Value:'
    'CLR_Type:Color:Msg_Type:Msg","Kernel Name","Context","Stream","Block Size","Grid Size",'
    '"Device","CC","Section Name","Metric Name","Metric Unit","Metric Value"'
)


def csv_text(values: dict[str, tuple[str, str]], launches: int = 2, op: str = "rms_norm") -> str:
    kernel = f"void flashvl::cuda::{profile_ncu.kernels('rms_norm')[0]}<__nv_bfloat16, 8>(Args)"
    lines = ["==PROF== Connected to process 7", "an answer", HEAD]
    for launch in range(launches):
        start = f'"{launch}","7","python","host","<default domain>:flashvl.{op}:none","{kernel}"'
        for metric, (unit, value) in values.items():
            lines.append(
                f'{start},"1","7","(256, 1, 1)","(64, 1, 1)","0","9.0",'
                f'"Command line profiler metrics","{metric}","{unit}","{value}"'
            )
    return "\n".join([*lines, "==PROF== Disconnected from process 7"][: len(lines)]) + "\n"


VALUES = {
    profile_ncu.TIME: ("ns", "2,500"),
    profile_ncu.READ: ("Kbyte", "12.5"),
    profile_ncu.WRITTEN: ("byte", "6,000"),
    profile_ncu.MEMORY: ("%", "81.5"),
    profile_ncu.COMPUTE: ("%", "12"),
    "launch__registers_per_thread": ("register/thread", "32"),
}


def test_ncu_fills_the_columns_of_a_profile(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "ncu.csv"
    file.write_text(csv_text(VALUES))
    (row,) = profile_ncu.read(file)
    assert (row.op, row.kernel, row.calls) == ("rms_norm", profile_ncu.kernels("rms_norm")[0], 2)
    assert row.seconds == pytest.approx(5e-6) and row.bound == "memory"
    assert (row.bytes_read, row.bytes_written) == (25_000, 12_000)
    assert row.fraction == pytest.approx(0.815)
    assert cli.main(["profile", "--ncu", str(file)]) == 0
    out = capsys.readouterr().out
    assert "5 us" in out and "82% memory" in out and "7.4 " in out


def test_ncu_without_ranges_knows_the_op_by_its_kernel(tmp_path: Path) -> None:
    file = tmp_path / "ncu.csv"
    file.write_text(csv_text(VALUES).replace("flashvl.rms_norm:", "other:"))
    assert profile_ncu.read(file)[0].op in ("rms_norm", "layer_norm")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "has no line with the columns"),
        ("==ERROR== No kernels were profiled\n", "make it with the commands"),
        (csv_text(VALUES)[:-40], "not as many cells"),
        (csv_text({**VALUES, profile_ncu.TIME: ("lightyear", "2")}), "unit is 'lightyear'"),
        (csv_text({**VALUES, profile_ncu.TIME: ("ns", "n/a")}), "value is 'n/a'"),
        (csv_text({**VALUES, profile_ncu.TIME: ("ns", "-1")}), "no kernel reaches"),
        (csv_text({**VALUES, profile_ncu.TIME: ("ns", "nan")}), "no kernel reaches"),
        (csv_text({profile_ncu.TIME: ("ns", "1")}), "has no metric dram__bytes_read"),
    ],
)
def test_a_csv_that_is_not_ncus_is_refused(
    text: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "ncu.csv"
    file.write_text(text)
    assert cli.main(["profile", "--ncu", str(file)]) == 2
    assert told in capsys.readouterr().err


def test_a_command_line_for_every_kernel_of_every_plan(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["profile", "--ncu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    commands = [shlex.split(line) for line in lines if not line.startswith("#")]
    named = {(c[c.index("--nvtx-include") + 1], c[c.index("--kernel-name") + 1]) for c in commands}
    planned = {name for name in REGISTRY if plan_module(name)}
    assert {op for op, _ in named} == {f"flashvl.{op}/" for op in planned}
    for op in planned:
        for instance in plan_module(op).instances():  # type: ignore[union-attr]
            assert (f"flashvl.{op}/", instance.expression.partition("<")[0]) in named
    for command in commands:
        assert command[0] == "ncu" and "--csv" in command and "--print-units" in command
        options = cli._parser().parse_args(command[command.index("flashvl-bench") + 1 :])
        assert options.device == "cuda" and options.nvtx


def test_a_device_is_waited_for_and_ranges_nest(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the GPU: each span begins and ends with a wait, inside its NVTX range."""
    told: list[str] = []
    monkeypatch.setattr(torch.cuda.nvtx, "range_push", lambda name: told.append(name))
    monkeypatch.setattr(torch.cuda.nvtx, "range_pop", lambda: told.append("pop"))
    recorder = Recorder(Clock(), wait=lambda: told.append("wait"), ranges=True)
    kernel = Kernel("cuda", "k", rms_norm.SPEC.reference)
    with recorder.stage("prefill"):
        recorder.run(rms_norm.SPEC, kernel, (torch.ones(2, 8), torch.ones(8), 0.1, None))
    assert told == [
        "wait", "flashvl.prefill", "wait", "flashvl.rms_norm", "wait", "pop", "wait", "pop",
    ]  # fmt: skip


def test_a_gpu_that_is_not_there_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert cli.main(["profile", "--device", "cuda", "--repeats", "1"]) == 2
    assert "CUDA" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["profile", "--nvtx"])
    assert "--nvtx needs" in capsys.readouterr().err
