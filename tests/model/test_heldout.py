"""Held-out questions and the tokenizer: fixed, balanced, honest about chance, and reproducible."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from flashvl import FlashVL, FlashVLConfig
from flashvl.tokenizer import Tokenizer as ChatTokenizer
from flashvl.train import heldout, make_tokenizer
from flashvl.train.canvas import COLOURS, SHAPES
from flashvl.train.dataset import example

ASSETS = Path(heldout.__file__).parents[1] / "assets"

pytest.importorskip("sklearn", reason="the handwritten digits come with scikit-learn")

# Held-out questions


def test_the_shipped_cases_are_the_ones_their_seed_draws() -> None:
    shipped, drawn = heldout.load_heldout(), heldout.make_heldout(200, heldout.FIXED_SEED)
    for a, b in zip(shipped, drawn, strict=True):
        assert (a.question, a.answer, a.kind) == (b.question, b.answer, b.kind)
        assert a.image.shape == b.image.shape and a.image.dtype == np.uint8
        assert abs(a.image.astype(int) - b.image).mean() < 6  # JPEG's error is about 2
    size = sum(path.stat().st_size for path in heldout.FOLDER.iterdir())
    assert size < 1_000_000


def test_the_shipped_answers_are_balanced() -> None:
    cases = heldout.load_heldout()
    lengths = Counter(len(c.answer) for c in cases if c.kind == "number")
    assert lengths == {1: 20, 2: 20, 3: 20, 4: 20}
    for kind, answers in (
        ("colour", COLOURS),
        ("shape", SHAPES),
        ("count", tuple("012345")),
        ("relation", ("yes", "no")),
    ):
        seen = Counter(c.answer for c in cases if c.kind == kind)
        assert seen == dict.fromkeys(answers, 30 // len(answers))
    best = heldout.chance(cases)
    assert best["relation"] == 0.5 and best["shape"] == 0.2 and best["number"] < 0.1


def test_fresh_held_out_cases_differ_by_seed() -> None:
    one, again, other = (heldout.make_heldout(20, seed) for seed in (1, 1, 2))
    assert all(np.array_equal(a.image, b.image) for a, b in zip(one, again, strict=True))
    assert not any(np.array_equal(a.image, b.image) for a, b in zip(one, other, strict=True))


def test_the_control_gives_every_question_another_picture_of_its_kind() -> None:
    cases = heldout.load_heldout()
    control = heldout.shuffled(cases)
    pictures: dict[str, list[bytes]] = defaultdict(list)
    moved: dict[str, list[bytes]] = defaultdict(list)
    for a, b in zip(cases, control, strict=True):
        assert (a.question, a.answer, a.kind) == (b.question, b.answer, b.kind)
        assert a.image is not b.image
        pictures[a.kind].append(a.image.tobytes())
        moved[b.kind].append(b.image.tobytes())
    assert all(sorted(moved[kind]) == sorted(pictures[kind]) for kind in pictures)
    again = heldout.shuffled(cases)
    assert all(a.image is b.image for a, b in zip(control, again, strict=True))


def test_score_counts_exact_matches_by_kind() -> None:
    cases = heldout.load_heldout()
    groups: list[int] = []

    def honest(_: object, group: list[heldout.Case]) -> list[str]:
        groups.append(len(group))
        return [f" {c.answer}\n" if c.kind != "count" else f"{c.answer}." for c in group]

    result = heldout.score(None, cases, batch=64, answer=honest)
    assert groups == [64, 64, 64, 8]
    assert result["number"] == (80, 80) and result["relation"] == (30, 30)
    assert result["count"] == (0, 30), "only an exact match counts"


def test_who_sees_only_the_picture_of_the_control_is_at_chance() -> None:
    """An all-knowing reader of the shuffled pictures answers as a blind one would."""
    cases = heldout.make_heldout(400, seed=3)
    truth = {c.image.tobytes(): c.answer for c in cases}

    def reader(_: object, group: list[heldout.Case]) -> list[str]:
        return [truth[c.image.tobytes()] for c in group]

    assert all(right == total for right, total in heldout.score(0, cases, answer=reader).values())
    control = heldout.score(0, heldout.shuffled(cases), answer=reader)
    for kind, best in heldout.chance(cases).items():
        right, total = control[kind]
        assert right / total <= best + 3.5 * (best * (1 - best) / total) ** 0.5, (kind, right)


@pytest.mark.usefixtures("one_thread")
def test_the_model_is_asked_each_question_about_its_own_picture() -> None:
    model = FlashVL.random(FlashVLConfig.tiny(), seed=0, dtype=torch.float32)
    model.tokenizer = ChatTokenizer.from_pretrained(ASSETS / "tiny")
    cases = heldout.load_heldout()[:4]
    alone = [
        model.generate([c.image], c.question, max_new_tokens=heldout.LONGEST_ANSWER).text
        for c in cases
    ]
    assert heldout.ask(model, cases) == alone
    assert sum(total for _, total in heldout.score(model, cases, batch=3).values()) == 4


# Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(ASSETS / "tiny" / "tokenizer.json"))


def test_training_the_tokenizer_again_gives_the_committed_one(tokenizer: Tokenizer) -> None:
    fresh = json.loads(make_tokenizer.train().to_str())
    committed = json.loads(tokenizer.to_str())
    assert fresh["model"]["vocab"] == committed["model"]["vocab"]
    assert fresh["model"]["merges"] == committed["model"]["merges"]
    assert (ASSETS / "tiny" / "tokenizer.json").stat().st_size < 60_000


def test_vocabulary(tokenizer: Tokenizer) -> None:
    vocabulary = tokenizer.get_vocab()
    assert sorted(vocabulary.values()) == list(range(512))
    assert [vocabulary[token] for token in make_tokenizer.SPECIAL] == [509, 510, 511]
    assert all(len(tokenizer.encode(str(n)).ids) == len(str(n)) for n in (0, 7, 42, 4071))
    for name in ("yes", "no", *SHAPES, *COLOURS):
        assert len(tokenizer.encode(name).ids) == 1, name
    assert len(tokenizer.encode("purple triangle").ids) == 2


def test_the_tokenizer_splits_as_qwen2_does(tokenizer: Tokenizer) -> None:
    pieces = tokenizer.pre_tokenizer.pre_tokenize_str("It's 2026:  a\n\n b-c!?")
    shown = [text for text, _ in pieces]
    assert shown == ["It", "'s", "Ġ", "2", "0", "2", "6", ":", "Ġ", "Ġa", "ĊĊ", "Ġb", "-c", "!?"]


@pytest.mark.parametrize("text", ["naïve 日本語 😀", "\x00\x7f\t x  y", "<image>?", ""])
def test_any_text_survives(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_conversations_are_short(tokenizer: Tokenizer) -> None:
    for made in (example(13, index, numbers=0.2) for index in range(200)):
        for question, answer, _ in made.turns:
            assert tokenizer.decode(tokenizer.encode(question).ids) == question
            assert len(tokenizer.encode(question).ids) <= 10
            assert len(tokenizer.encode(answer).ids) < heldout.LONGEST_ANSWER
