"""The tiny model's data: reproducible, held-out digits apart, answers true, nothing to guess."""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flashvl.train import digits, heldout
from flashvl.train.canvas import (
    SQUARE,
    TALL,
    WIDE,
    Example,
)
from flashvl.train.dataset import ahead, canvas_of, example, make_batch, shares_of, stream

ASSETS = Path(heldout.__file__).parents[1] / "assets"

pytest.importorskip("sklearn", reason="the handwritten digits come with scikit-learn")


def same(one: dict, other: dict) -> bool:
    return one["turns"] == other["turns"] and all(
        np.array_equal(one[k], other[k]) for k in ("images", "symbol", "ordinal", "colour")
    )


# The stream


def test_a_stream_resumes_exactly_where_it_was_cut() -> None:
    whole = list(itertools.islice(stream(5, workers=0, batch=4), 6))
    rest = list(itertools.islice(stream(5, start=3, workers=0, batch=4), 3))
    assert all(same(a, b) for a, b in zip(whole[3:], rest, strict=True))
    assert not same(whole[0], next(stream(6, workers=0, batch=4)))
    assert len({batch["images"].numpy().tobytes() for batch in whole}) == 6


def test_a_worker_process_makes_the_same_batches_in_the_same_order() -> None:
    ahead = stream(5, start=2, workers=1, batch=4)
    try:
        for number in range(2, 6):
            assert same(next(ahead), make_batch(5, number, 4))
    finally:
        ahead.close()


def test_canvases_come_in_the_stated_shares_and_lengths_are_uniform() -> None:
    seen = Counter(canvas_of(0, number) for number in range(2000))
    for size, share in ((WIDE, 0.70), (SQUARE, 0.25), (TALL, 0.05)):
        assert abs(seen[size] / 2000 - share) < 0.035, (size, seen)
    rng = np.random.default_rng(0)
    lengths = Counter(
        len(digits.number_text(rng, canvas_of(0, number), None)) for number in range(2000)
    )
    assert all(abs(lengths[n] / 2000 - 0.25) < 0.05 for n in range(1, 5)), lengths


def test_the_numbers_share_is_obeyed() -> None:
    kinds = [example(3, i, SQUARE, numbers=0.3).turns[0][2] for i in range(200)]
    assert 0.19 < kinds.count("number") / 200 < 0.41
    assert {turns[0][2] for turns in make_batch(0, 0, 16, numbers=1.0)["turns"]} == {"number"}


@pytest.mark.parametrize("wrong", [{"batch": 0}, {"start": -1}, {"workers": -1}, {"numbers": 1.5}])
def test_stream_names_what_it_cannot_do(wrong: dict) -> None:
    name, value = next(iter(wrong.items()))
    with pytest.raises(ValueError, match=f"{name}={value}"):
        next(stream(0, **wrong))


def test_batches_are_tensors_of_one_canvas() -> None:
    for number, batch in enumerate(itertools.islice(stream(2, workers=0, batch=3), 4)):
        height, width = canvas_of(2, number)
        assert batch["images"].dtype == torch.uint8
        assert batch["images"].shape == (3, height, width, 3)
        for index, turns in enumerate(batch["turns"]):
            alone = example(2, number * 3 + index, (height, width), shares_of(2, number, 0.5))
            assert turns == alone.turns
            assert torch.equal(batch["symbol"][index], torch.from_numpy(alone.targets.symbol))
            assert torch.equal(batch["images"][index], torch.from_numpy(alone.image))


def test_items_made_ahead_come_in_order_and_with_their_errors() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(3):
            made.append(number)
            yield number
        raise RuntimeError("the fourth")

    found = ahead(items())
    assert [next(found), next(found), next(found)] == [0, 1, 2] == made
    with pytest.raises(RuntimeError, match="the fourth"):
        next(found)
    assert list(ahead(range(4))) == [0, 1, 2, 3]
    assert list(ahead(())) == []


# Numbers


def test_train_and_held_out_digits_are_disjoint_and_stratified() -> None:
    train, held = digits.handwriting(False), digits.handwriting(True)
    for mine, theirs in zip(train.indices, held.indices, strict=True):
        assert not set(mine) & set(theirs)
        assert 48 <= len(theirs) <= 51
    assert sum(map(len, train.indices)) == 1297
    assert sum(map(len, held.indices)) == 500


def test_training_draws_only_training_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    used: set[int] = set()
    draw = digits.draw_digit

    def spy(rng: np.random.Generator, glyph: Image.Image, height: float) -> np.ndarray:
        used.add(id(glyph))
        return draw(rng, glyph, height)

    monkeypatch.setattr(digits, "draw_digit", spy)
    owned = {
        held: {id(g) for group in digits.handwriting(held).glyphs for g in group}
        for held in (False, True)
    }
    for index in range(150):
        example(1, index, WIDE, numbers=1.0)
    assert len(used) > 200 and used <= owned[False]
    used.clear()
    heldout.make_heldout(60, seed=1)
    assert len(used) > 30 and used <= owned[True]


def test_numbers_answer_what_stands_there_from_left_to_right(drawn_numbers: list[Example]) -> None:
    for made in drawn_numbers:
        text = "".join(m.name for m in sorted(made.marks, key=lambda m: m.left))
        (_, answer, kind), *rest = made.turns
        assert (answer, kind) == (text, "number")
        assert text == "0" or text[0] != "0"
        assert all(turn == (digits.HOW_MANY_DIGITS, str(len(text)), "digits") for turn in rest)
    digit_turns = sum(len(made.turns) - 1 for made in drawn_numbers)
    assert 0.2 < digit_turns / len(drawn_numbers) < 0.4


def test_ink_lies_in_the_digits_boxes(drawn_numbers: list[Example]) -> None:
    """Inside the boxes the picture departs from the paper, outside it does not."""
    for made in drawn_numbers:
        grey = made.image.mean(2)
        inside = np.zeros(grey.shape, bool)
        for m in made.marks:
            inside[m.top : m.bottom, m.left : m.right] = True
        sheet = np.median(grey[~inside])
        for m in made.marks:
            box = grey[m.top : m.bottom, m.left : m.right]
            assert np.percentile(abs(box - sheet), 90) > 50
        near = inside.copy()
        for axis, step in itertools.product((0, 1), (-1, 1)):
            near |= np.roll(inside, step, axis)  # blur reaches a pixel beyond the box
        assert np.percentile(abs(grey[~near] - sheet), 99) < 45


def test_without_scikit_learn_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [n for n in sys.modules if n == "sklearn" or n.startswith("sklearn.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    digits.handwriting.cache_clear()
    with pytest.raises(ImportError, match=r"pip install flashvl-kernels\[train\]"):
        digits.handwriting(False)
    assert len(heldout.load_heldout()) == 200, "the shipped cases must not need it"
