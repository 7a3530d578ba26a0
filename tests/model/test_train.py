"""Training: what it learns from is right, and stopping it changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("sklearn", reason="the digits come with scikit-learn (extra: train)")

from flashvl.config import FlashVLConfig
from flashvl.model import FlashVL
from flashvl.tokenizer import Tokenizer
from flashvl.train import loop, tiny
from flashvl.train.batches import Batch, collate, grid_of
from flashvl.train.canvas import Mark
from flashvl.train.dataset import stream
from flashvl.train.lookups import (
    Comparison,
    LookupHead,
    Mention,
    MentionFinder,
    Watched,
    centres,
    named,
    object_tokens,
)
from flashvl.train.losses import _turn_shares, _turns_right, canvas_features, spoken

STAGES = (
    tiny.Stage("look", 2, 1e-3, ("vision", "heads"), batch=2),
    tiny.Stage("join", 3, 1e-3, tiny.EVERYTHING, batch=2),
)


@pytest.fixture(scope="module")
def batch() -> Batch:
    return make_batch(numbers=0.0)


def make_batch(numbers: float) -> Batch:
    config = FlashVLConfig.tiny()
    tokenizer = Tokenizer.from_pretrained(tiny.ASSETS / "tiny")
    finder = MentionFinder(tokenizer, config.decoder.vocab)
    arrays = next(stream(7, workers=0, batch=3, numbers=numbers))
    return collate(arrays, config, tokenizer, finder)


def trainer(out: Path) -> tiny.Trainer:
    return tiny.Trainer(out, seed=3, stages=STAGES, workers=0)


def test_an_interrupted_run_ends_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deterministic: None
) -> None:
    monkeypatch.setattr(loop, "SAVE_EVERY", -1.0)
    whole = trainer(tmp_path / "whole")
    whole.run()

    learn = tiny.Trainer.learn
    steps = 0

    def stopped(self: tiny.Trainer, stage: tiny.Stage, batch: Batch) -> dict[str, float]:
        nonlocal steps
        steps += 1
        if steps in (2, 5):  # in the first stage and in the second
            raise KeyboardInterrupt
        return learn(self, stage, batch)

    monkeypatch.setattr(tiny.Trainer, "learn", stopped)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            trainer(tmp_path / "stopped").run()
    resumed = trainer(tmp_path / "stopped")
    resumed.run()
    assert steps == 7
    for name, value in whole.average.items():
        assert torch.equal(value, resumed.average[name]), name
    logs = [(tmp_path / run / "log.csv").read_text() for run in ("whole", "stopped")]
    assert logs[0] == logs[1] and len(logs[0].splitlines()) == 6


def test_the_log_loses_the_steps_that_no_state_knows_of(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    first = loop.Log(path, ("loss",), keep=0)
    for step in range(1, 6):
        first.add("join", step, {"loss": float(step)})
    again = loop.Log(path, ("loss",), keep=3)
    again.add("join", 4, {"loss": 0.5})
    rows = path.read_text().splitlines()
    assert rows[0] == "stage,step,loss" and rows[3:] == ["join,3,3.0000", "join,4,0.5000"]
    assert loop.Log(tmp_path / "new.csv", ("loss",), keep=3).recent() == ""


def test_a_run_stops_when_its_time_is_up_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deterministic: None
) -> None:
    seen = []
    for _ in range(5):
        one = trainer(tmp_path)
        finished = one.run(seconds=0.0)  # up at once: a step, and one more where a stage ends
        seen.append((finished, one.steps_done))
    assert seen == [(False, 1), (False, 3), (False, 4), (True, 5), (True, 5)]


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


MARKS = (
    Mark("circle", "red", 0, 70, 20, 90),
    Mark("square", "blue", 0, 10, 20, 30),
    Mark("circle", "blue", 40, 40, 60, 60),
)


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("What colour is the square?", [("square", (0,))]),
        ("What shape is red?", [("red", (2,))]),
        ("How many circles are there?", [("circles", (2, 1))]),
        ("How many blue shapes are there?", [("shapes", (0, 1))]),
        ("How many shapes are there?", [("shapes", (2, 0, 1))]),
        ("How many stars are there?", []),
        ("Is the red circle left of the blue square?", [("circle", (2,)), ("square", (0,))]),
    ],
)
def test_names_in_a_question_mean_the_right_objects(
    question: str, expected: list[tuple[str, tuple[int, ...]]]
) -> None:
    found = list(named(question, MARKS))
    assert [ranks for _, ranks in found] == [ranks for _, ranks in expected]
    for (last, _), (word, _) in zip(found, expected, strict=True):
        assert question[: last + 1].endswith(word)


@pytest.mark.parametrize("numbers", [0.0, 1.0])
def test_mentions_stand_at_the_tokens_that_name_or_precede(numbers: float) -> None:
    batch = make_batch(numbers)
    tokenizer = Tokenizer.from_pretrained(tiny.ASSETS / "tiny")
    assert batch.mentions
    for mention in (m for m in batch.mentions if isinstance(m, Mention)):
        token, after = batch.ids[mention.row, mention.place : mention.place + 2].tolist()
        if numbers:
            digit = int(tokenizer.decode([after]))
            at = batch.ordinal[mention.row] == mention.ranks[0] + 1
            assert (batch.symbol[mention.row][at] == 1 + digit).all()
        else:
            assert tokenizer.decode([token]).strip().isalpha()


def test_comparisons_stand_before_the_answer_and_agree_with_it() -> None:
    """The sign of the difference and the relation's word give the yes or no that follows."""
    batch = make_batch(0.0)
    tokenizer = Tokenizer.from_pretrained(tiny.ASSETS / "tiny")
    compared = [m for m in batch.mentions if isinstance(m, Comparison)]
    assert compared
    for one in compared:
        row = torch.tensor([one.row])
        gap = centres(batch, row, torch.tensor([one.first])) - centres(
            batch, row, torch.tensor([one.second])
        )
        down, right = gap[0].tolist()
        ids = batch.ids[one.row]
        answer = tokenizer.decode([int(ids[one.place + 1])])
        start = int((ids[: one.place] == tokenizer.im_start).nonzero()[-2])
        asked = tokenizer.decode([i for i in ids[start : one.place].tolist() if i >= 0])
        signs = {"left of": -right, "right of": right, "above": -down, "below": down}
        (sign,) = (value for word, value in signs.items() if word in asked)
        assert answer == ("yes" if sign > 0 else "no"), asked


def test_object_tokens_are_the_share_each_object_covers() -> None:
    ordinal = torch.tensor([[1, 1, 0, 2, 1, 0, 0, 2]])  # canvas 2 x 4
    share = object_tokens(ordinal, (2, 4), (1, 2))
    assert share.shape == (1, 5, 2)
    assert share[0, :2].tolist() == [[0.75, 0.0], [0.0, 0.5]]


def test_the_lookup_loss_watches_the_attention_the_decoder_uses(batch: Batch) -> None:
    """Shares recomputed from the hook add up to one and come from earlier tokens only."""
    model = FlashVL.random(FlashVLConfig.tiny(), dtype=torch.float32)
    head = LookupHead(model.config.decoder.dim)
    with torch.no_grad(), Watched(model.decoder) as seen:
        spoken(model, torch.randn(3, batch.grid.canvas_len, 128), batch)
    mentions = [m for m in batch.mentions if isinstance(m, Mention)]
    rows = torch.tensor([m.row for m in mentions])
    places = torch.tensor([m.place for m in mentions])
    shares = seen.log_attention(3, batch.ids.shape[1], rows, places).exp()
    torch.testing.assert_close(shares.sum(1), torch.ones(len(rows)))
    for share, place in zip(shares, places.tolist(), strict=True):
        assert share[place + 1 :].sum() == 0
    how = model.config.image.compression_for(batch.grid)
    assert how.out is not None
    assert head(seen, batch, how.out).isfinite()


def test_pictures_of_no_canvas_size_are_refused() -> None:
    with pytest.raises(ValueError, match="no grid of the model spans"):
        grid_of(FlashVLConfig.tiny(), 64, 100)


def test_the_rate_rises_then_falls_to_zero() -> None:
    rates = [loop.schedule(step, 1000) for step in range(1000)]
    assert rates[0] < 0.02
    assert max(rates) == 1.0
    assert rates[-1] < 1e-5
    assert rates[100:] == sorted(rates[100:], reverse=True)
