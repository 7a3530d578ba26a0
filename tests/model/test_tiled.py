"""Pictures that need tiles: reproducible, seams true, answers in the picture, splits apart."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flashvl.config import FlashVLConfig
from flashvl.train import (
    digits,
    printed,
    tiled,
    tiled_example,
    tiled_families,
    tiled_heldout,
)
from flashvl.train.glyphs import symbol_of
from flashvl.train.scenes import RGB
from flashvl.train.seams import Box, seam
from flashvl.train.tiled_batches import Curriculum, stream
from flashvl.train.tiny import ASSETS
from flashvl_kernels.tiles import TileGrid

pytest.importorskip("sklearn", reason="the handwritten digits come with scikit-learn")


def test_batches_do_not_depend_on_the_workers() -> None:
    config, curriculum = FlashVLConfig.tiny(), Curriculum(0, 10, 8, 8, pages=0.3)
    runs = [
        list(itertools.islice(stream(config, ASSETS / "tiny", 3, start, workers, 4, curriculum), 3))
        for start, workers in ((0, 0), (0, 2), (1, 0))
    ]
    alone, parallel, later = runs
    for one, other in (*zip(alone, parallel, strict=True), *zip(alone[1:], later, strict=False)):
        assert one.keys() == other.keys() and one["policy"] == other["policy"]
        assert one["turns"] == other["turns"] and one["pointers"] == other["pointers"]
        for name, value in one.items():
            assert not isinstance(value, torch.Tensor) or value.equal(other[name]), name
    assert not alone[0]["images"][0].equal(alone[0]["images"][1])


def test_a_later_example_does_not_depend_on_the_batch_size() -> None:
    kind = tiled.batch_kind(5, 1)
    for batch in (2, 3):
        first = tiled.examples(5, batch, 1, kind)[0]
        assert np.array_equal(first.image, tiled.example(5, batch, *kind).image)


SUBPIXELS = 16


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_seams_are_what_counting_points_by_their_owner_gives(data: st.DataObject) -> None:
    """Every 1/16 px of the box is looked up in TileGrid.owner() and in the tiles' own spans."""
    overlap = data.draw(st.sampled_from((0, 1, 2, 3, 4)))
    rows, cols = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    grid = TileGrid(rows, cols, 8, overlap)
    size = 128, 96
    top, left = data.draw(st.integers(0, 100)), data.draw(st.integers(0, 80))
    bottom, right = data.draw(st.integers(top + 1, 128)), data.draw(st.integers(left + 1, 96))
    found = seam(Box(top, left, bottom, right), size, grid)

    shares, depths, whole = [0.0], [0.0], True
    ranges = ((top, bottom), (left, right))
    for axis, (first, last) in enumerate(ranges):
        points = (np.arange(first * SUBPIXELS, last * SUBPIXELS) + 0.5) / SUBPIXELS
        patches = points * grid.canvas_full[axis] / size[axis]
        line = grid.owner().numpy().take(0, axis=1 - axis)  # the owners along this axis
        owners = line[patches.astype(int)]
        changes = np.flatnonzero(np.diff(owners)) + 1
        for change in changes:
            fewer = min(change, len(owners) - change)
            shares.append(fewer / len(owners))
            depths.append(fewer / SUBPIXELS)
        starts = range(0, (rows, cols)[axis] * (8 - overlap), 8 - overlap)
        whole &= any((patches >= s).all() and (patches <= s + 8).all() for s in starts)
    best = int(np.argmax(shares))
    near = 1 / SUBPIXELS
    assert found.share == pytest.approx(shares[best], abs=near)
    assert any(found.depth == pytest.approx(depth, abs=near) for depth in depths)
    assert found.whole == whole


def test_a_seam_by_hand() -> None:
    plain, overlapping = TileGrid(1, 2, 8), TileGrid(1, 2, 8, 2)
    word = Box(10, 56, 20, 96)  # 8 of its 40 px lie left of the cut at 64
    assert seam(word, (64, 128), plain) == seam(word, (64, 128), plain)
    found = seam(word, (64, 128), plain)
    assert (found.depth, found.share, found.whole) == (8.0, 0.2, False)
    # 14 patches over 128 px: the second tile begins at 6 patches, 54.9 px, and sees the word whole
    assert seam(word, (64, 128), overlapping).whole
    assert seam(word, (64, 128), overlapping).depth == pytest.approx(8.0)


@pytest.mark.parametrize("family", tiled_families.FAMILIES)
def test_examples_lie_where_they_were_asked_to(family: str) -> None:
    for index, on_seam in itertools.product(range(3), (True, False)):
        rng = np.random.default_rng((index, on_seam))
        made = tiled.draw(rng, tiled_example.PICTURES[index], family, on_seam)
        found = made.seam(tiled_example.plain_grid(made.size))
        assert found.on == on_seam and found.whole != on_seam
        assert found.share >= tiled.LEAST_SHARE or not on_seam


def extents(boxes: tuple[Box, ...]) -> list[tuple[float, float]]:
    return [(box.bottom - box.top, box.right - box.left) for box in boxes]


@pytest.mark.parametrize("family", ("word", "number", "handwritten"))
def test_a_text_on_a_seam_is_no_other_than_off_it(family: str) -> None:
    """Length, font and size are settled before the place: else long or large ones would lie on a
    seam more often, and a comparison of the two would be one of sizes."""
    found = []
    for index in range(24):
        size = tiled_example.PICTURES[index % 3]
        on, off = (
            tiled.draw(np.random.default_rng(index), size, family, on_seam)
            for on_seam in (True, False)
        )
        if not on.more or family != "number":  # which line of a receipt is asked may differ
            assert on.turn[1] == off.turn[1] and extents(on.boxes) == extents(off.boxes)
        found.append(len(on.turn[1]))
        assert off.boxes[0].right - off.boxes[0].left <= tiled_families.ROOM
    assert set(found) >= ({2, 5, 8} if family == "word" else {1, 4})


@pytest.mark.parametrize("size", tiled_example.PICTURES)
def test_a_page_says_in_its_lines_what_it_is_asked_for(size: tuple[int, int]) -> None:
    """Lines by the height of their glyphs, each answer spelled by the glyphs of its line."""
    lengths = set()
    for index in range(6):
        made = tiled.example(5, index, size, tiled_families.PAGE)
        groups = sorted({glyph.group for glyph in made.glyphs})
        lines = [[g for g in made.glyphs if g.group == group] for group in groups]
        for above, below in itertools.pairwise(lines):
            assert max(g.box.bottom for g in above) < min(g.box.bottom for g in below)
        assert len(lines) >= (4 if size[0] == 128 else 2)
        turns = (made.turn, *made.more)
        assert len(turns) == min(len(lines), tiled_families.MOST_ASKED)
        for question, answer, kind in turns:
            number = int(question.removesuffix(" say?").rpartition(" ")[2])
            assert kind == "line"
            assert [g.symbol for g in lines[number - 1]] == [symbol_of(c) for c in answer]
            lengths.add(len(answer))
            assert answer not in printed.SIGNS or printed.fits(answer, held_out=False)
        assert len({question for question, _, _ in turns}) == len(turns)
    assert len(lengths) > 4


def test_families_and_pages_come_in_their_shares() -> None:
    kinds = [tiled.batch_kind(1, number, pages=0.3)[1] for number in range(800)]
    plain = [tiled.batch_kind(1, number)[1] for number in range(800)]
    assert kinds.count(tiled_families.PAGE) / 800 == pytest.approx(0.3, abs=0.05)
    assert tiled_families.PAGE not in plain
    for family, share in zip(tiled_families.FAMILIES, tiled.SHARES, strict=True):
        assert plain.count(family) / 800 == pytest.approx(share, abs=0.05)
    rest = [(kind, other) for kind, other in zip(kinds, plain, strict=True) if kind != "page"]
    assert all(kind == other for kind, other in rest)


def test_a_text_too_wide_for_its_room_is_none() -> None:
    rng = np.random.default_rng(0)
    assert printed.fitting(rng, "WWWWWWWW", 60, 60) is None
    fitting = printed.fitting(rng, "tilt", 60, 60)
    assert fitting is not None and max(fitting.ink.shape) <= 60 and fitting.text == "tilt"


def _blank_outside(image: np.ndarray, boxes: tuple[Box, ...]) -> np.ndarray:
    """How far each pixel outside the boxes is from the paper, which is a plane of each channel."""
    height, width = image.shape[:2]
    y, x = np.mgrid[:height, :width]
    outside = np.ones((height, width), bool)
    for box in boxes:
        outside[int(box.top) - 1 : int(box.bottom) + 1, int(box.left) - 1 : int(box.right) + 1] = 0
    plane = np.stack([y[outside], x[outside], np.ones(outside.sum())], 1).astype(float)
    values = image[outside].astype(float)
    return values - plane @ np.linalg.lstsq(plane, values, rcond=None)[0]


@pytest.mark.parametrize("family", ("word", "handwritten"))
def test_the_box_of_a_text_holds_all_of_its_ink(family: str) -> None:
    """Ink is at least 80 grey levels from the paper; sensor noise stays below 48 (6 sigma)."""
    for index in range(4):
        rng = np.random.default_rng(index)
        made = tiled.draw(rng, tiled_example.BIG, family, bool(index % 2))
        assert np.abs(_blank_outside(made.image, made.boxes).mean(1)).max() < 48
        (box,) = made.boxes
        inside = made.image[int(box.top) : int(box.bottom), int(box.left) : int(box.right)]
        assert np.ptp(inside.astype(int).mean(2)) > 60


def test_printed_ink_reads_as_its_text() -> None:
    """The text is told from all others of its length by its own ink, letter by letter."""
    for text in ("hotel", "Zek", "7576", "31.05"):
        for name in printed.FONTS:
            mask = printed.ink(text, name, 16)
            one_off = [
                text[:i] + ("o" if text[i] != "o" else "x") + text[i + 1 :]
                for i in range(len(text))
            ]
            others = [printed.ink(other, name, 16) for other in one_off]
            assert all(o.shape != mask.shape or np.abs(o - mask).max() > 0.3 for o in others)
            assert mask.max() > 0.9 and mask[0].max() > 0.1 and mask[:, -1].max() > 0.1


def test_scene_answers_are_read_back_from_the_picture() -> None:
    """The colour of the asked shape, and the count, from the boxes alone."""
    names, inks = list(RGB), np.array(list(RGB.values()), float)
    counted = set()
    for index in range(60):
        made = tiled.example(11, index, tiled_example.BIG, "scene")
        question, answer, kind = made.turn
        if kind == "colour":
            (box,) = made.boxes
            y, x = int((box.top + box.bottom) / 2), int((box.left + box.right) / 2)
            seen = made.image[y - 1 : y + 2, x - 1 : x + 2].astype(float).mean((0, 1))
            assert names[int(np.abs(inks - seen).sum(1).argmin())] == answer, question
        if kind == "count" and answer != "0":
            assert len(made.boxes) == int(answer), question
        counted.add(kind)
    assert counted == {"colour", "shape", "count", "relation"}


def test_no_held_out_text_is_printed_in_training() -> None:
    rng = np.random.default_rng(0)
    for make in (printed.word, printed.number, printed.price):
        training = {make(rng, False).lower() for _ in range(300)}
        held_out = {make(rng, True).lower() for _ in range(300)}
        shared = training & held_out
        assert all(len(text) <= 2 for text in shared)
        assert len(training | held_out) > (200 if make is not printed.number else 150)
    assert {len(printed.word(rng, False)) for _ in range(200)} == set(range(2, 9))


def test_some_training_words_have_their_letters_in_any_order_and_no_held_out_one_has() -> None:
    """Syllables begin with one consonant each, and no vowel follows another."""
    rng = np.random.default_rng(0)
    jumbled = re.compile(r"[aeiou]|[^aeiou]{2}|.*(?:[aeiou]{2}|[^aeiou]{3})")

    def share(held_out: bool) -> float:
        drawn = [printed.word(rng, held_out, 8).lower() for _ in range(400)]
        return sum(bool(jumbled.match(word)) for word in drawn) / len(drawn)

    assert share(True) == 0.0  # there is no sign of eight letters
    assert abs(share(False) - printed.JUMBLED) < 0.1


def test_jumbled_words_have_few_to_many_narrow_letters() -> None:
    rng = np.random.default_rng(0)
    drawn = [printed.jumble(rng, 8) for _ in range(600)]
    narrow = np.array([sum(letter in printed.NARROW for letter in text) for text in drawn])
    chance = len(printed.NARROW) / len(printed.LETTERS)
    wanted = printed.MOST_NARROW / 2 * (1 - chance) + chance
    assert narrow.mean() / 8 == pytest.approx(wanted, abs=0.03)
    assert (narrow == 0).any() and (narrow >= 7).any()


def test_held_out_digits_never_meet_the_training_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    train, held = digits.handwriting(False), digits.handwriting(True)
    assert not set(sum(train.indices, ())) & set(sum(held.indices, ()))
    asked = []

    def watched(held_out: bool) -> digits.Handwriting:
        asked.append(held_out)
        return held if held_out else train

    monkeypatch.setattr(digits, "handwriting", watched)
    for index in range(4):
        tiled.example(0, index, tiled_example.BIG, "handwritten")
    assert set(asked) == {False}
    asked.clear()
    tiled_heldout.make_cases("handwritten", 2)
    assert set(asked) == {True}


def test_the_shipped_cases_are_the_ones_their_seed_draws() -> None:
    cases = tiled_heldout.load_cases()
    assert len(cases) == len(tiled_families.FAMILIES) * tiled_heldout.CASES
    for family in tiled_families.FAMILIES:
        shipped = [case for case in cases if case.family == family]
        drawn = tiled_heldout.make_cases(family, 6, tiled_heldout.FIXED_SEED)
        for one, other in zip(shipped, drawn, strict=False):
            assert one.turn == other.turn and one.boxes == other.boxes
            assert abs(one.image.astype(int) - other.image).mean() < 8  # JPEG's error is about 3
        assert sum(case.seam(tiled_example.plain_grid(case.size)).on for case in shipped) == 100
        for case in shipped:
            _, answer, kind = case.turn
            if kind in ("word", "printed", "price"):
                assert printed.fits(answer, held_out=True), answer


def test_the_shipped_files_are_small_and_few() -> None:
    files = list(tiled_heldout.FOLDER.iterdir())
    assert sum(path.stat().st_size for path in files) < tiled_heldout.MOST_BYTES
    assert len(files) == 1 + len(tiled_families.FAMILIES) * len(tiled_example.PICTURES)


def test_cases_are_written_as_they_are_read(tmp_path: Path) -> None:
    tiled_heldout.write_cases(tmp_path, n=2, seed=1)
    read = tiled_heldout.load_cases(tmp_path)
    drawn = tiled_heldout.make_all_cases(2, 1)
    assert [c.turn for c in read] == [c.turn for c in drawn]
    assert [c.boxes for c in read] == [c.boxes for c in drawn]
