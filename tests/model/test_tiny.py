"""The shipped checkpoint really reads the picture: held-out questions, and the same without it."""

from __future__ import annotations

import pytest
import torch

from flashvl import FlashVL
from flashvl.train.heldout import chance, load_heldout, score, shuffled


@pytest.fixture(scope="module")
def model() -> FlashVL:
    return FlashVL.from_pretrained("tiny", dtype=torch.float32)


def test_held_out_answers_come_from_the_picture(model: FlashVL) -> None:
    """docs/tiny.md states 186 of 200; another CPU's rounding may turn a few close calls."""
    cases = load_heldout()
    right = score(model, cases)
    control = score(model, shuffled(cases))
    assert sum(hits for hits, _ in right.values()) >= 180
    for kind, (hits, total) in right.items():
        close_calls = 1 / total
        assert hits / total >= (0.8 if kind == "number" else 0.9) - close_calls, kind
        # Three standard errors of a guess above the best blind guess, and as many below the score.
        guess, other = chance(cases)[kind], control[kind][0] / total
        spread = (guess * (1 - guess) / total) ** 0.5
        assert other <= guess + 3 * spread, kind
        assert other <= hits / total - 3 * spread, kind
