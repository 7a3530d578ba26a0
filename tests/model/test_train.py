"""Training: what it learns from is right, and stopping it changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("sklearn", reason="the digits come with scikit-learn (extra: train)")

from flashvl.config import FlashVLConfig
from flashvl.model import FlashVL
from flashvl.tokenizer import Tokenizer
from flashvl.train import tiny
from flashvl.train.batches import Batch, collate, grid_of
from flashvl.train.dataset import stream
from flashvl.train.losses import _turn_shares, _turns_right, canvas_features, spoken

STAGES = (
    tiny.Stage("look", 2, 1e-3, ("vision", "heads"), batch=2),
    tiny.Stage("join", 3, 1e-3, ("vision", "heads", "adapter", "decoder"), batch=2),
)


@pytest.fixture(scope="module")
def batch() -> Batch:
    tokenizer = Tokenizer.from_pretrained(tiny.ASSETS / "tiny")
    return collate(next(stream(7, workers=0, batch=3)), FlashVLConfig.tiny(), tokenizer)


def trainer(out: Path) -> tiny.Trainer:
    return tiny.Trainer(out, seed=3, stages=STAGES, workers=0)


def test_an_interrupted_run_ends_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny, "SAVE_EVERY", -1.0)
    whole = trainer(tmp_path / "whole")
    whole.run()

    learn = tiny.Trainer._learn
    steps = 0

    def stopped(self: tiny.Trainer, stage: tiny.Stage, batch: Batch) -> dict[str, float]:
        nonlocal steps
        steps += 1
        if steps in (2, 5):  # in the first stage and in the second
            raise KeyboardInterrupt
        return learn(self, stage, batch)

    monkeypatch.setattr(tiny.Trainer, "_learn", stopped)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            trainer(tmp_path / "stopped").run()
    resumed = trainer(tmp_path / "stopped")
    resumed.run()
    assert steps == 7
    for name, value in whole.average.items():
        assert torch.equal(value, resumed.average[name]), name


def test_a_state_of_another_run_is_refused(tmp_path: Path) -> None:
    first = trainer(tmp_path)
    first.out.mkdir(exist_ok=True)
    first.save()
    other = tiny.Trainer(tmp_path, seed=4, stages=STAGES, workers=0)
    with pytest.raises(ValueError, match="seed 3, not 4"):
        other.resume()


def test_training_sees_what_inference_sees(batch: Batch) -> None:
    """The canvas of the dense loss, compressed, is the fused path of `embed_images`."""
    model = FlashVL.random(FlashVLConfig.tiny(), dtype=torch.float32)
    how = model.config.image.compression_for(batch.grid)
    with torch.no_grad():
        rows = model.adapter(canvas_features(model, batch), how, size=batch.grid.canvas)
        torch.testing.assert_close(rows, model.embed_images(batch.rows, batch.grid))


def test_the_loss_looks_at_answers_only(batch: Batch) -> None:
    model = FlashVL.random(FlashVLConfig.tiny(), dtype=torch.float32)
    canvas = torch.randn(3, batch.grid.canvas_len, 128)
    with torch.no_grad():
        before = spoken(model, canvas, batch).loss
        last = batch.answers.nonzero()[-1]
        changed = batch.ids.clone()
        changed[last[0], last[1] + 2 :] = 5  # after the last answer's end
        after = spoken(model, canvas, Batch(**{**batch.__dict__, "ids": changed})).loss
    assert torch.equal(before, after)
    assert batch.answers.any(1).all()


def test_a_turn_is_right_only_if_all_of_its_tokens_are() -> None:
    predicts = torch.tensor([[0, 1, 1, 0, 0, 1, 0, 1, 1, 1]], dtype=torch.bool)
    hits = torch.tensor([[0, 1, 1, 0, 0, 0, 0, 1, 1, 0]], dtype=torch.bool)
    kinds = [["number", "digits", "count"]]
    assert _turns_right(predicts, hits, kinds) == [
        ("number", True), ("digits", False), ("count", False),
    ]  # fmt: skip


def test_every_turn_weighs_the_same_in_the_loss() -> None:
    predicts = torch.tensor([[0, 1, 1, 0, 1], [0, 0, 1, 1, 1]], dtype=torch.bool)
    expected = torch.tensor([[0, 1 / 6, 1 / 6, 0, 1 / 3], [0, 0, 1 / 9, 1 / 9, 1 / 9]])
    torch.testing.assert_close(_turn_shares(predicts), expected)


def test_pictures_of_no_canvas_size_are_refused() -> None:
    with pytest.raises(ValueError, match="no grid of the model spans"):
        grid_of(FlashVLConfig.tiny(), 64, 100)


def test_the_rate_rises_then_falls_to_zero() -> None:
    rates = [tiny.schedule(step, 1000) for step in range(1000)]
    assert rates[0] < 0.02
    assert max(rates) == 1.0
    assert rates[-1] < 1e-5
    assert rates[100:] == sorted(rates[100:], reverse=True)
