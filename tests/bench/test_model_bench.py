"""The model benchmark: peers on our weights agree with us, and a wrong output shows no time."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from flashvl import FlashVL, FlashVLConfig
from flashvl.config import AdapterConfig, DecoderConfig, VisionConfig
from flashvl_bench import cli, loading, model, peer, report, schema

SETTINGS = model.Settings(config="tiny", dtype="fp32", prompt=6, tokens=2, repeats=2)
SMALL_SIGLIP = FlashVLConfig(
    VisionConfig("siglip2", 48, 2, 3, 80, 8, 32, 1e-6),
    AdapterConfig(192, 64, 32),
    DecoderConfig(32, 1, 2, 1, 16, 64, 64, max_positions=64),
)


@pytest.fixture(autouse=True)
def small_siglip(monkeypatch: pytest.MonkeyPatch) -> None:
    small = staticmethod(lambda: SMALL_SIGLIP)
    monkeypatch.setattr(FlashVLConfig, "static_2b", small)


@pytest.mark.parametrize(("config", "dtype"), [("static_2b", "fp32"), ("tiny", "bf16")])
def test_both_sides_agree_and_are_timed(config: str, dtype: str) -> None:
    rows = list(model.measure(replace(SETTINGS, config=config, dtype=dtype)))
    torch_rows = [row for row in rows if row.backend == "torch"]
    assert [row.part for row in torch_rows] == ["vision", "prefill", "decode"]
    limit = {"fp32": 1e-5, "bf16": 3e-2}[dtype]
    for row in torch_rows:
        assert row.status == "ok", row.reason
        assert row.error is not None and row.peer_error is not None
        assert row.error < limit and row.peer_error < limit
        assert row.ratio is not None and row.ratio > 0
    assert [len(row.seconds) for row in torch_rows] == [2, 2, 4]


def test_a_wrong_model_never_shows_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    right = FlashVL.decode_step

    def slightly_off(self: FlashVL, *args: Any, **kwargs: Any) -> torch.Tensor:
        return right(self, *args, **kwargs) * 1.001

    monkeypatch.setattr(FlashVL, "decode_step", slightly_off)
    rows = list(model.measure(replace(SETTINGS, parts=("decode",))))
    assert {row.status for row in rows} <= {"wrong", "falls back"}
    wrong = rows[0]
    assert wrong.status == "wrong" and wrong.median is None and wrong.seconds == ()
    assert report.model_cells(wrong, model.BAR)[2].startswith("WRONG: rms")


def test_the_peer_shares_our_memory_and_survives_widening() -> None:
    ours = FlashVL.random(SMALL_SIGLIP, dtype=torch.bfloat16)
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
    assert "DEPTH CUT" in model._title(cut) and "DEPTH CUT" not in model._title(SETTINGS)


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
    row = model.Row("vision", "torch", seconds=(1.0,), peer_seconds=(2.0,), median=1.0, ratio=0.5)
    monkeypatch.setattr(model, "measure", lambda _: iter([replace(row, peer_median=2.0)]))
    monkeypatch.setattr(report, "model_cells", lambda *_: ["vision"])
    file = tmp_path / "model.json"
    assert cli.main(["model", "--config", "tiny", "--only", "vision", "--json", str(file)]) == 0
    assert schema.read(file)["parts"][0]["ratio"] == 0.5
    broken = json.loads(file.read_text())
    broken["parts"][0]["status"] = "wrong"
    with pytest.raises(schema.SchemaError, match=r"parts\[0\] has a time"):
        schema.validate(broken)
