"""Drawn scenes: answers true, objects apart, nothing to guess."""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict

import numpy as np
import pytest
from recount import recount

from flashvl.train import scenes
from flashvl.train.canvas import COLOURS, SHAPES, SQUARE, Example
from flashvl.train.dataset import canvas_of

pytest.importorskip("sklearn", reason="the handwritten digits come with scikit-learn")


def test_every_scene_answer_survives_a_recount(drawn_scenes: list[Example]) -> None:
    kinds = Counter()
    for made in drawn_scenes:
        for question, answer, kind in made.turns:
            assert recount(question, made.marks, made.image.shape[:2]) == answer, question
            kinds[kind] += 1
    assert set(kinds) == {"colour", "shape", "count", "relation", "object", "place"}
    assert sum(len(made.turns) >= 2 for made in drawn_scenes) > 0.95 * len(drawn_scenes)


def test_objects_lie_apart_inside_the_canvas(drawn_scenes: list[Example]) -> None:
    for made in drawn_scenes:
        height, width = made.image.shape[:2]
        assert 1 <= len(made.marks) <= (3 if (height, width) == SQUARE else 5)
        for m in made.marks:
            assert 0 < m.top < m.bottom < height and 0 < m.left < m.right < width
            assert 16 <= m.right - m.left <= 26
        for a, b in itertools.combinations(made.marks, 2):
            assert a.bottom < b.top or b.bottom < a.top or a.right < b.left or b.right < a.left


def test_objects_have_their_colour_in_the_picture(drawn_scenes: list[Example]) -> None:
    palette = np.array([scenes.RGB[c] for c in COLOURS], float)
    for made in drawn_scenes:
        for m in made.marks:
            y, x = (int(v) for v in m.centre)
            seen = np.median(made.image[y - 2 : y + 2, x - 2 : x + 2].reshape(-1, 3), axis=0)
            nearest = COLOURS[int(abs(palette - seen).sum(1).argmin())]
            assert nearest == m.colour, (m, seen)


def test_the_five_shapes_differ_even_when_small() -> None:
    masks = {
        (shape, turn): scenes.shape_mask(shape, 16, turn)
        for shape in SHAPES
        for turn in scenes.TURNS
    }
    for (one, a), (other, b) in itertools.combinations(masks.items(), 2):
        if one[0] != other[0]:
            # a turned square and a circle differ by their corners only: 0.19
            assert abs(a - b).sum() / min(a.sum(), b.sum()) > 0.15, (one, other)


def test_leading_answers_cannot_be_guessed_from_the_question() -> None:
    """Per wording, no answer of a leading question is much more frequent than a fair share."""
    fair = {"colour": 1 / 6, "shape": 1 / 5, "count": 1 / 6, "relation": 1 / 2}
    answers: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for index in range(1600):
        size = canvas_of(21, index)
        kind = scenes.KINDS[index % 4]
        made = scenes.draw_scene(np.random.default_rng((21, index)), size, kind)
        question, answer, asked = made.turns[0]
        if asked == kind:
            words = [w for w in scenes.RELATIONS if w in question] if kind == "relation" else [""]
            answers[kind, words[0]][answer] += 1
    assert len(answers) == 7
    for (kind, word), seen in answers.items():
        total = seen.total()
        spread = 3.5 * (fair[kind] * (1 - fair[kind]) / total) ** 0.5
        most = max(seen.values()) / total
        assert most < fair[kind] + spread + 0.02, (kind, word, seen)
        assert len(seen) == round(1 / fair[kind])


def test_later_turns_are_balanced_too(drawn_scenes: list[Example]) -> None:
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for made in drawn_scenes:
        for _, answer, kind in made.turns[1:]:
            answers[kind][answer] += 1
    fair = {"colour": 1 / 6, "shape": 1 / 5, "count": 1 / 3, "relation": 1 / 2}
    for kind, share in fair.items():  # "how many shapes" leans to small scenes, hence 1/3
        seen = answers[kind]
        total = seen.total()
        limit = share + 3.5 * (share * (1 - share) / total) ** 0.5
        assert total > 50 and max(seen.values()) / total < limit, (kind, seen)


def test_no_turn_is_answered_by_the_text_before_it(drawn_scenes: list[Example]) -> None:
    name = re.compile(rf"(?:{'|'.join(COLOURS)}) (?:{'|'.join(SHAPES)})")
    for made in drawn_scenes:
        asked = [question for question, _, _ in made.turns]
        assert len(set(asked)) == len(asked)
        pairs = set()
        told = ""
        for question, answer, kind in made.turns:
            if kind in ("relation", "object"):
                key = (
                    frozenset(name.findall(f"{question} {answer}")),
                    "above" in question or "below" in question,
                )
                assert key not in pairs, made.turns
                pairs.add(key)
            if kind == "shape":
                colour = question.removesuffix("?").split()[-1]
                assert f"{colour} {answer}" not in told, made.turns
            if kind == "colour":
                shape = question.removesuffix("?").split()[-1]
                assert f"{answer} {shape}" not in told, made.turns
            told += f"{question} {answer} "
