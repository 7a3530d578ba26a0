"""The README's picture tells a wrong answer from a right one."""

from __future__ import annotations

import numpy as np
import pytest

from flashvl.demo import load_questions
from flashvl.train import demo_sheet


def reds(answers: list[str]) -> int:
    """Pixels of the sheet in the colour of a wrong answer."""
    sheet = demo_sheet.draw(list(zip(load_questions(), answers, strict=True)))
    return int((np.asarray(sheet) == demo_sheet.RED).all(-1).sum())


def test_a_wrong_answer_is_red_and_stands_beside_the_right_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    questions = load_questions()
    right = [q.answer for q in questions]
    assert reds(right) == 0
    assert reds(["7", *right[1:]]) > 20
    said: list[str] = []
    pen = demo_sheet.ImageDraw.ImageDraw
    written = pen.text

    def noted(self: object, at: tuple[int, int], text: str, **options: object) -> None:
        said.append(text)
        written(self, at, text, **options)

    monkeypatch.setattr(pen, "text", noted)
    demo_sheet.draw(list(zip(questions, ["7", *right[1:]], strict=True)))
    assert said[1] == f"7 (is {right[0]})"
    assert said[::2] == [q.question for q in questions] and said[3::2] == right[1:]
