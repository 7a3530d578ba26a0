"""Dense targets of canvases: which symbol owns each patch, by counting its pixels."""

from __future__ import annotations

import numpy as np
import pytest

from flashvl.train import scenes
from flashvl.train.canvas import (
    COLOURS,
    PATCH,
    SQUARE,
    WIDE,
    Example,
    Mark,
    box_coverage,
    targets_from,
)

pytest.importorskip("sklearn", reason="the handwritten digits come with scikit-learn")


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
