"""What every training picture shares: canvas sizes, the example, dense targets, noise.

The tiny model sees tiles of 64 px (8x8 patches of 8 px) that overlap by two patches, so a 1x2 grid
covers 64x112 px. Pictures are drawn at canvas size: training never resizes.

Dense targets say, for every 8x8 patch, which symbol covers it: the encoder learns from them what
the next-token loss alone is slow to teach.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

PATCH = 8
WIDE, SQUARE, TALL = (64, 112), (64, 64), (112, 64)
SIZES = (WIDE, SQUARE, TALL)
SIZE_SHARES = (0.70, 0.25, 0.05)

SHAPES = ("circle", "square", "triangle", "cross", "star")
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange")

BACKGROUND = 0
FIRST_DIGIT = 1  # symbol of "0"
FIRST_SHAPE = 11  # symbol of SHAPES[0]
SYMBOLS = FIRST_SHAPE + len(SHAPES)
ORDINALS = 6  # background, then 1..5 from the left
COLOUR_CLASSES = 1 + len(COLOURS)

COVERAGE = 0.25  # share of a patch an object needs to own it

Turn = tuple[str, str, str]  # question, answer, kind


@dataclass(frozen=True)
class Mark:
    """One digit or shape: its name, colour (None for digits) and box in px, ends exclusive."""

    name: str
    colour: str | None
    top: int
    left: int
    bottom: int
    right: int

    @property
    def symbol(self) -> int:
        if self.name in SHAPES:
            return FIRST_SHAPE + SHAPES.index(self.name)
        return FIRST_DIGIT + int(self.name)

    @property
    def centre(self) -> tuple[float, float]:
        """(y, x) in px."""
        return (self.top + self.bottom) / 2, (self.left + self.right) / 2


@dataclass(frozen=True)
class Targets:
    """int64 [rows * cols] each, row-major over the canvas' patches; 0 is background."""

    symbol: np.ndarray
    ordinal: np.ndarray
    colour: np.ndarray


@dataclass(frozen=True)
class Example:
    """A picture (uint8 [H, W, 3]), its question turns, dense targets and what was drawn."""

    image: np.ndarray
    turns: tuple[Turn, ...]
    targets: Targets
    marks: tuple[Mark, ...]


def box_coverage(marks: tuple[Mark, ...], size: tuple[int, int]) -> np.ndarray:
    """Share of each patch inside each mark's box: float32 [marks, rows, cols]."""
    boxes = np.array([(m.top, m.left, m.bottom, m.right) for m in marks], np.float32).reshape(-1, 4)

    def along(first: np.ndarray, last: np.ndarray, length: int) -> np.ndarray:
        edge = np.arange(0, length, PATCH, dtype=np.float32)
        inside = np.minimum(last[:, None], edge + PATCH) - np.maximum(first[:, None], edge)
        return np.clip(inside, 0, None) / PATCH

    down = along(boxes[:, 0], boxes[:, 2], size[0])
    across = along(boxes[:, 1], boxes[:, 3], size[1])
    return down[:, :, None] * across[:, None, :]


def targets_from(marks: tuple[Mark, ...], coverage: np.ndarray, size: tuple[int, int]) -> Targets:
    """Give each patch to the mark that covers most of it.

    A mark owns a patch if it covers at least COVERAGE of it or has its centre there, so that even
    a thin "1" on a patch border has an owner.
    """
    rows, cols = size[0] // PATCH, size[1] // PATCH
    names = np.zeros((3, rows * cols), np.int64)
    if not marks:
        return Targets(*names)
    score = coverage.reshape(len(marks), rows * cols).copy()
    for index, mark in enumerate(marks):
        y, x = mark.centre
        score[index, int(y // PATCH) * cols + int(x // PATCH)] += 2.0
    owner = score.argmax(0)
    owned = score.max(0) >= COVERAGE
    rank = np.empty(len(marks), np.int64)
    rank[np.argsort([m.centre[1] for m in marks], kind="stable")] = np.arange(1, len(marks) + 1)
    colour = [0 if m.colour is None else 1 + COLOURS.index(m.colour) for m in marks]
    table = np.stack([np.array([m.symbol for m in marks]), rank, np.array(colour)])
    names[:, owned] = table[:, owner[owned]]
    return Targets(*names)


@lru_cache(maxsize=8)
def _ramp(length: int) -> np.ndarray:
    return np.linspace(-1, 1, length, dtype=np.float32)


def paper(rng: np.random.Generator, size: tuple[int, int], colour: np.ndarray) -> np.ndarray:
    """A sheet of one colour (0..255) with a faint linear shade: float32 [H, W, 3]."""
    slope = rng.uniform(-10, 10, 2).astype(np.float32)
    shade = slope[0] * _ramp(size[0])[:, None] + slope[1] * _ramp(size[1])[None, :]
    return colour.astype(np.float32) + shade[:, :, None]


def _blur(sheet: np.ndarray, share: float) -> np.ndarray:
    """Give `share` of each row to either neighbour: it spreads by sqrt(2 * share) px."""
    blurred = sheet.copy()
    blurred[1:-1] += np.float32(share) * (sheet[:-2] + sheet[2:] - 2 * sheet[1:-1])
    return blurred


def photograph(rng: np.random.Generator, sheet: np.ndarray) -> np.ndarray:
    """Mild blur, contrast and sensor noise; float32 [H, W, 3] in 0..255 to uint8."""
    contrast, light = rng.uniform(0.88, 1.05), rng.uniform(-8, 8)
    sheet = sheet * np.float32(contrast) + np.float32(127.5 * (1 - contrast) + light)
    if rng.random() < 0.3:
        sheet = _blur(_blur(sheet, rng.uniform(0.02, 0.24)).swapaxes(0, 1), rng.uniform(0.02, 0.24))
        sheet = sheet.swapaxes(0, 1)
    if rng.random() < 0.7:
        grain = rng.standard_normal(sheet.shape, dtype=np.float32)
        sheet = sheet + grain * np.float32(rng.uniform(1, 8))
    return np.clip(np.rint(sheet), 0, 255).astype(np.uint8)
