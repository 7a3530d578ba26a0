"""The tiny model's data: reproducible, held-out digits apart, answers true, nothing to guess."""

from __future__ import annotations

import itertools
import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flashvl.train import digits, heldout, make_demo, printed, scenes
from flashvl.train.canvas import (
    COLOURS,
    PATCH,
    SHAPES,
    SIZES,
    SQUARE,
    TALL,
    WIDE,
    Example,
    Mark,
    box_coverage,
    targets_from,
)
from flashvl.train.dataset import ahead, canvas_of, example, make_batch, shares_of, stream

ASSETS = Path(heldout.__file__).parents[1] / "assets"

pytest.importorskip("sklearn", reason="the handwritten digits come with scikit-learn")


def same(one: dict, other: dict) -> bool:
    return one["turns"] == other["turns"] and all(
        np.array_equal(one[k], other[k]) for k in ("images", "symbol", "ordinal", "colour")
    )


@pytest.fixture(scope="module")
def drawn_scenes() -> list[Example]:
    return [example(11, i, SIZES[i % 3], numbers=0.0) for i in range(600)]


@pytest.fixture(scope="module")
def drawn_numbers() -> list[Example]:
    return [example(12, i, SIZES[i % 3], numbers=1.0) for i in range(300)]


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


# Scenes


def recount(question: str, marks: tuple[Mark, ...], size: tuple[int, int]) -> str:
    """The answer, worked out from the object list by other means than the generator's."""

    def find(name: str) -> Mark:
        (only,) = [m for m in marks if f"{m.colour} {m.name}" == name]
        return only

    def holds(first: Mark, relation: str, second: Mark) -> bool:
        dx = (first.left + first.right) / 2 - (second.left + second.right) / 2
        dy = (first.top + first.bottom) / 2 - (second.top + second.bottom) / 2
        along = {"left of": -dx, "right of": dx, "above": -dy, "below": dy}[relation]
        assert abs(along) >= 8, "too close to call"
        return along > 0

    where = "(left of|right of|above|below)"
    if found := re.fullmatch(r"What colou?r is the (\w+)\?", question):
        (only,) = [m for m in marks if m.name == found[1]]
        return str(only.colour)
    if found := re.fullmatch(r"(?:What|Which) shape is (\w+)\?", question):
        (only,) = [m for m in marks if m.colour == found[1]]
        return only.name
    if question == "How many shapes are there?":
        return str(len(marks))
    if found := re.fullmatch(r"How many (\w+) shapes are there\?", question):
        return str(sum(m.colour == found[1] for m in marks))
    if found := re.fullmatch(r"How many (\w+?)(?:es|s) are there\?", question):
        name = next(s for s in SHAPES if s in (found[1], found[1] + "e"))
        return str(sum(m.name == name for m in marks))
    if found := re.fullmatch(rf"Is the (\w+ \w+) {where} the (\w+ \w+)\?", question):
        return "yes" if holds(find(found[1]), found[2], find(found[3])) else "no"
    if found := re.fullmatch(r"Where is the (\w+ \w+)\?", question):
        mark = find(found[1])
        thirds = [
            (first + last) / 2 * 3 // side
            for first, last, side in (
                (mark.top, mark.bottom, size[0]),
                (mark.left, mark.right, size[1]),
            )
        ]
        words = [("top", "", "bottom")[int(thirds[0])], ("left", "", "right")[int(thirds[1])]]
        return " ".join(filter(None, words)) or "middle"
    found = re.fullmatch(rf"What is {where} the (\w+ \w+)\?", question)
    assert found and len(marks) == 2, question
    (other,) = [m for m in marks if m is not find(found[2])]
    assert holds(other, found[1], find(found[2]))
    return f"{other.colour} {other.name}"


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


# Dense targets


def check_targets(made: Example) -> None:
    height, width = made.image.shape[:2]
    cols = width // PATCH
    by_place = sorted(made.marks, key=lambda m: m.left + m.right)
    labels = [
        (
            m.symbol,
            by_place.index(m) + 1,
            0 if m.colour is None else COLOURS.index(m.colour) + 1,
        )
        for m in made.marks
    ]
    targets = made.targets
    found = list(
        zip(targets.symbol.tolist(), targets.ordinal.tolist(), targets.colour.tolist(), strict=True)
    )
    assert len(found) == (height // PATCH) * cols
    for patch, label in enumerate(found):
        y, x = patch // cols * PATCH, patch % cols * PATCH
        inside = [
            sum(
                m.top <= row < m.bottom and m.left <= col < m.right
                for row in range(y, y + PATCH)
                for col in range(x, x + PATCH)
            )
            for m in made.marks
        ]
        centred = [
            i
            for i, m in enumerate(made.marks)
            if y <= m.centre[0] < y + PATCH and x <= m.centre[1] < x + PATCH
        ]
        if len(centred) == 1:
            assert label == labels[centred[0]]
        elif not centred and max(inside) < 16:
            assert label == (0, 0, 0)
        elif not centred and made.marks[0].colour is None:
            best = [labels[i] for i, n in enumerate(inside) if n == max(inside)]
            assert label in best
        elif label != (0, 0, 0):  # shapes go by their mask: at most their box
            assert inside[labels.index(label)] >= 16


def test_targets_agree_with_the_boxes(
    drawn_numbers: list[Example], drawn_scenes: list[Example]
) -> None:
    for made in (*drawn_numbers[:90], *drawn_scenes[:90]):
        check_targets(made)
    filled = np.mean([(made.targets.symbol > 0).mean() for made in drawn_scenes])
    assert 0.08 < filled < 0.4


def test_a_solid_square_owns_the_patches_under_it() -> None:
    for index in range(40):
        made = scenes.draw_scene(np.random.default_rng((4, index)), WIDE, "count", count=2)
        cover = box_coverage(made.marks, WIDE).reshape(len(made.marks), -1)
        for m, share in zip(made.marks, cover, strict=True):
            if m.name == "square":
                assert (made.targets.symbol[share > 0.99] == m.symbol).all()


def test_patch_coverage_of_a_known_box() -> None:
    mark = Mark("7", None, 4, 8, 20, 18)  # rows 4..20, columns 8..18
    share = box_coverage((mark,), SQUARE)[0]
    expected = np.zeros((8, 8), np.float32)
    expected[:3, 1] = (0.5, 1.0, 0.5)
    expected[:3, 2] = (0.125, 0.25, 0.125)
    assert np.array_equal(share, expected)
    targets = targets_from((mark,), share[None], SQUARE)
    assert np.flatnonzero(targets.symbol).tolist() == [1, 9, 10, 17]
    assert set(targets.symbol[targets.symbol > 0]) == {8}
    assert not targets.colour.any()


# Demo pictures


def demo_entries() -> Iterator[tuple[str, np.ndarray, dict[str, str]]]:
    for entry in json.loads((ASSETS / "demo" / "demo.json").read_text(encoding="utf-8")):
        with Image.open(ASSETS / "demo" / entry["image"]) as picture:
            pixels = np.asarray(picture)
        yield entry["image"], pixels, {t["question"]: t["answer"] for t in entry["turns"]}


def test_demo_answers_are_right_and_pictures_need_the_resize() -> None:
    entries = list(demo_entries())
    assert 6 <= len(entries) <= 10
    written = {f"{row[0]}.png": row[3] for row in make_demo.NUMBERS}
    things = {f"{row[0]}.png": row[4] for row in make_demo.SCENES}
    prices = {f"{row[0]}.png": dict(row[7]) for row in make_demo.RECEIPTS}
    signs = {f"{row[0]}.png": row[3] for row in make_demo.SIGNS}
    for name, pixels, turns in entries:
        assert min(pixels.shape[:2]) > 2 * 64, name
        for question, answer in turns.items():
            if name in things:
                marks = tuple(
                    Mark(shape, colour, top, left, top + side, left + side)
                    for colour, shape, top, left, side in things[name]
                )
                assert recount(question, marks, pixels.shape[:2]) == answer
            elif name in prices:
                (price,) = (p for goods, p in prices[name].items() if f"of {goods}?" in question)
                assert answer == price and printed.is_held_out(price)
            elif name in signs:
                assert answer == signs[name] and printed.is_held_out(answer)
            else:
                text = written[name]
                assert answer == (str(len(text)) if "How many" in question else text)


def test_demo_pictures_are_what_the_script_draws(tmp_path: Path) -> None:
    make_demo.write_demo(tmp_path)
    for name, pixels, _ in demo_entries():
        with Image.open(tmp_path / name) as drawn:
            assert abs(np.asarray(drawn, int) - pixels).max() <= 2, name


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
