"""The model benchmark: sides agree before they are timed, and a wrong output shows no time."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from flashvl import FlashVL, FlashVLConfig
from flashvl.config import AdapterConfig, DecoderConfig, VisionConfig
from flashvl_bench import (
    cli,
    loading,
    memory,
    model,
    parts,
    peer,
    remote,
    report,
    rows,
    schema,
    work,
)
from flashvl_bench.ceilings import Ceilings
from flashvl_bench.timing import Contender

RATES = {"bf16": 1e12, "fp16": 1e12, "fp32": 1e12}
STATIC = FlashVLConfig.static_2b()
TOP = Ceilings(1e10, 1e10, RATES, 1, {"tiles_bf16": 5e12}, 9e9)
SETTINGS = model.Settings(
    config="tiny", dtype="fp32", peers=("transformers",), prompt=6, tokens=2, repeats=2
)
SMALL_SIGLIP = FlashVLConfig(
    VisionConfig("siglip2", 48, 2, 3, 80, 8, 32, 1e-6),
    AdapterConfig(192, 64, 32),
    DecoderConfig(32, 1, 2, 1, 16, 64, 64, max_positions=64),
)
SERVER = """
import sys; sys.path.insert(0, sys.argv[2])
import protocol
def start():
    if protocol.settings()["broken"]:
        raise ValueError("no such file")
    print("a library talks")
    return {"step": lambda: {"seconds": 0.25}, "die": lambda: sys.exit(3)}
protocol.serve(start)
"""


@pytest.fixture(autouse=True)
def small_siglip(monkeypatch: pytest.MonkeyPatch) -> None:
    small = staticmethod(lambda: SMALL_SIGLIP)
    monkeypatch.setattr(FlashVLConfig, "static_2b", small)


@pytest.mark.parametrize(("config", "dtype"), [("static_2b", "fp32"), ("tiny", "bf16")])
def test_both_sides_agree_and_are_timed(config: str, dtype: str) -> None:
    found = list(model.measure(replace(SETTINGS, config=config, dtype=dtype), TOP))
    names = ["vision", "prefill", "decode", "decode8", "ttft"]
    floats = [row for row in found if row.weights == "bf16"]
    assert [row.part for row in floats] == names and len(found) == 3 * len(names)
    limit = {"fp32": 1e-5, "bf16": 3e-2}[dtype]
    for row in found:
        assert row.status == "ok", f"{row.part} {row.weights}: {row.reason}"
        assert row.flops > 0 and row.bytes_read > 0 and row.fraction is not None
    for row in floats:
        assert row.error is not None and row.error < limit
        assert row.peer_error is not None and row.peer_error < limit
        (theirs,) = row.peers
        assert theirs.speedup is not None and theirs.speedup > 0
        assert len(theirs.seconds) == len(row.seconds)
    assert [len(row.seconds) for row in floats] == [2, 2, 4, 4, 2]
    one, eight = floats[2], floats[3]
    assert eight.flops > 7 * one.flops and eight.bytes_read < 2 * one.bytes_read
    assert all(row.cosine is not None for row in found if row.weights != "bf16")
    assert "bf16" in report.batch_line(found)


def test_a_wrong_model_never_shows_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    right = FlashVL.decode_step

    def slightly_off(self: FlashVL, *args: Any, **kwargs: Any) -> torch.Tensor:
        return right(self, *args, **kwargs) * 1.001

    monkeypatch.setattr(FlashVL, "decode_step", slightly_off)
    settings = replace(SETTINGS, weights=("bf16",), parts=("decode",))
    (wrong,) = model.measure(settings, TOP)
    assert wrong.status == "wrong" and wrong.median is None and wrong.seconds == ()
    assert wrong.peers == ()
    assert report.model_cells(wrong)[0][3].startswith("WRONG: rms")


def test_the_work_of_the_2b_model_is_the_known_one() -> None:
    c = STATIC
    assert work.vision(c.vision, 0, 2).flops == pytest.approx(0.97e12, rel=0.01)
    assert work.prefill(c.decoder, 300, 0, 2).flops == pytest.approx(0.77e12, rel=0.02)
    step = work.decode(c.decoder, 1, 300, int(3.09e9), 2)
    assert step.bytes == pytest.approx(3.1e9, rel=0.01)
    assert step.flops == pytest.approx(2 * 1.54e9, rel=0.02)


def test_a_remote_peer_takes_turns_on_its_own_clock(tmp_path: Path) -> None:
    peers = str(Path(remote.__file__).parent / "peers")
    command = [sys.executable, "-c", SERVER.replace("sys.argv[2]", repr(peers))]
    with remote.Remote("test", {"broken": False}, command) as process:
        assert process.seconds("step") == 0.25
        side = rows.contender("test", process, "step")
        ours = Contender("ours", lambda: None)
        row = rows.Row("decode", "bf16", "auto")
        absent = remote.RemoteError("not installed")
        cost = work.Cost(10, 10, 10)
        got = rows.timed(row, ours, {"test": side, "other": absent}, 3, (cost, TOP, "bf16"), 1)
        assert got.peers[0].seconds == (0.25,) * 3
        assert (got.peers[1].status, got.peers[1].reason) == ("absent", "not installed")
        with pytest.raises(remote.RemoteError, match="SystemExit"):
            process.ask("die")
    with pytest.raises(remote.RemoteError, match="ValueError: no such file"):
        remote.Remote("test", {"broken": True}, command)


def test_a_peer_that_is_not_installed_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FLASHVL_PEERS", str(tmp_path))
    for name in ("openvino", "llama.cpp"):
        with pytest.raises(remote.RemoteError, match="make peers"):
            remote.python_of(name)


def test_peak_memory_is_measured_in_a_fresh_process() -> None:
    found = memory.measure(SMALL_SIGLIP, "fp32", "bf16", "torch", 1, 4)
    assert found.status == "ok", found.reason
    assert found.peak_bytes >= found.steady_bytes > found.held_bytes > 0
    assert "within" in replace(found, peak_bytes=int(5e9)).line(whole=True)
    assert "OVER" in replace(found, peak_bytes=int(6e9)).line(whole=True)


def test_the_peer_shares_our_memory_and_survives_widening() -> None:
    ours = parts.built(SMALL_SIGLIP, replace(SETTINGS, dtype="bf16"), "bf16", rows=True)
    theirs = peer.vision_peer(ours)
    pointers = {parameter.data_ptr() for parameter in theirs.parameters()}
    assert ours.vision.positions.data_ptr() in pointers
    pixels = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        with peer.widened(theirs):
            wide = theirs(pixel_values=pixels.double()).last_hidden_state
        narrow = theirs(pixel_values=pixels.bfloat16()).last_hidden_state
    assert wide.dtype == torch.float64 and narrow.dtype == torch.bfloat16
    assert {parameter.data_ptr() for parameter in theirs.parameters()} == pointers


def test_depth_is_cut_on_both_sides_and_said() -> None:
    cut = replace(SETTINGS, layers=1)
    config = model.configuration(cut)
    assert (config.vision.layers, config.decoder.layers) == (1, 1)
    assert "DEPTH CUT" in model.title(cut) and "DEPTH CUT" not in model.title(SETTINGS)


def test_loading_is_measured_in_fresh_processes() -> None:
    found = loading.measure(SMALL_SIGLIP, "fp32")
    assert found.status == "ok", found.reason
    parameters = sum(p.numel() for p in FlashVL(SMALL_SIGLIP, "meta").parameters())
    assert found.weight_bytes >= 4 * parameters
    assert found.peak_bytes > found.baseline_bytes > 0


def test_a_missing_peer_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(peer, "transformers", None)
    assert cli.main(["model", "--config", "tiny"]) == 2
    assert "flashvl-kernels[test]" in capsys.readouterr().out


def test_the_file_is_valid(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = rows.PeerRow("transformers", seconds=(2.0,), median=2.0, iqr=0.0, speedup=2.0)
    row = rows.Row("vision", "bf16", "auto", seconds=(1.0,), median=1.0, peers=(theirs,))
    monkeypatch.setattr(model, "measure", lambda *_: iter([row]))
    monkeypatch.setattr(model.ceilings, "measure", lambda *_: TOP)
    file = tmp_path / "model.json"
    assert cli.main(["model", "--config", "tiny", "--only", "vision", "--json", str(file)]) == 0
    assert schema.read(file)["parts"][0]["peers"][0]["speedup"] == 2.0
    for path, status in (((), "wrong"), (("peers", 0), "absent")):
        broken = json.loads(file.read_text())
        place = broken["parts"][0]
        for step in path:
            place = place[step]
        place["status"] = status
        with pytest.raises(
            schema.SchemaError, match=rf"{path[0] if path else 'parts'}\[0\] has a time"
        ):
            schema.validate(broken)
