"""Numbers in real handwriting: the 1797 digits scikit-learn ships (UCI optical digits, 8x8 grey).

500 of them, chosen once and stratified by label, are held out: no training picture holds them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from flashvl.train.canvas import (
    TALL,
    WIDE,
    Example,
    Mark,
    Turn,
    box_coverage,
    paper,
    photograph,
    targets_from,
)

READ = (
    "What number is written?",
    "Read the number.",
    "Which number do you see?",
    "What number is this?",
)
HOW_MANY_DIGITS = "How many digits are there?"

HELD_OUT = 500
SPLIT_SEED = 2505
MAX_LENGTH = {WIDE: 4, TALL: 2}  # any other canvas: 2

# 30 % of pictures are not wide and hold 1 or 2 digits; these shares make lengths uniform overall.
WIDE_LENGTHS = (1 / 7, 1 / 7, 5 / 14, 5 / 14)

MARGIN = 2  # px kept free at the canvas' edge and between neighbours
BORDER = 3  # zeros around the 8x8 source, so that bicubic fades to nothing


@dataclass(frozen=True)
class Handwriting:
    """Digits of one split: padded float images by label, and their index in scikit-learn's set."""

    glyphs: tuple[tuple[Image.Image, ...], ...]
    indices: tuple[tuple[int, ...], ...]


def split_indices(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(train, held-out) indices: HELD_OUT digits spread over the labels as in the whole set."""
    rng = np.random.default_rng(SPLIT_SEED)
    shares = np.array([(labels == digit).sum() for digit in range(10)]) * HELD_OUT / len(labels)
    counts = np.floor(shares).astype(int)
    counts[np.argsort(counts - shares, kind="stable")[: HELD_OUT - counts.sum()]] += 1
    held = [
        rng.permutation(np.flatnonzero(labels == digit))[: counts[digit]] for digit in range(10)
    ]
    held_out = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(labels)), held_out), held_out


@lru_cache(maxsize=2)
def handwriting(held_out: bool) -> Handwriting:
    """The training digits, or the held-out ones. Needs scikit-learn, which carries the data."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "the handwritten digits come with scikit-learn, which is not installed: "
            "pip install flashvl-kernels[train]"
        ) from error
    pixels, labels = load_digits(return_X_y=True)
    chosen = split_indices(labels)[1 if held_out else 0]
    indices = tuple(tuple(int(i) for i in chosen[labels[chosen] == d]) for d in range(10))
    padded = np.pad(
        pixels.reshape(-1, 8, 8).astype(np.float32) / 16, ((0, 0), (BORDER,) * 2, (BORDER,) * 2)
    )
    glyphs = tuple(tuple(Image.fromarray(padded[i]) for i in group) for group in indices)
    return Handwriting(glyphs, indices)


def draw_digit(rng: np.random.Generator, glyph: Image.Image, height: float) -> np.ndarray:
    """One digit, turned up to 8 degrees and sheared, cropped to its ink: float32 [h, w] in 0..1."""
    angle = np.deg2rad(rng.uniform(-8, 8))
    shear = rng.uniform(-0.15, 0.15)
    step_y = 8 / height  # source px a canvas px
    step_x = step_y / rng.uniform(0.85, 1.15)
    side = int(height * 1.5) + 4
    cos, sin = np.cos(angle), np.sin(angle)
    a, b = step_x * cos, step_x * (shear * cos - sin)
    d, e = step_y * sin, step_y * (shear * sin + cos)
    middle, target = glyph.width / 2, side / 2
    coefficients = (a, b, middle - (a + b) * target, d, e, middle - (d + e) * target)
    warped = glyph.transform(
        (side, side), Image.Transform.AFFINE, coefficients, Image.Resampling.BICUBIC
    )
    # Less a tenth, so that the crop at the ink's last pixels leaves no faint box around the digit.
    ink = np.clip(np.asarray(warped) * rng.uniform(1.1, 1.5) - 0.1, 0, 1)
    visible = ink > 0.03
    rows = np.flatnonzero(visible.any(1))
    cols = np.flatnonzero(visible.any(0))
    return ink[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]


def lay_out(
    rng: np.random.Generator, inks: list[np.ndarray], size: tuple[int, int]
) -> list[tuple[int, int]] | None:
    """(top, left) of each digit on one line, without overlap; None if they don't fit."""
    height, width = size
    spare = width - 2 * MARGIN - sum(ink.shape[1] for ink in inks)
    gaps = rng.integers(MARGIN, 9, len(inks) - 1)
    if gaps.sum() > spare:
        gaps[:] = MARGIN
    spare -= int(gaps.sum())
    tallest = max(ink.shape[0] for ink in inks)
    if spare < 0 or tallest > height - 2 * MARGIN:
        return None
    left = MARGIN + int(rng.integers(0, spare + 1))
    line = rng.uniform(MARGIN + tallest / 2, height - MARGIN - tallest / 2)
    places = []
    for ink, gap in zip(inks, [*gaps, 0], strict=True):
        high = ink.shape[0]
        top = round(line - high / 2 + rng.uniform(-3, 3))
        places.append((min(max(top, MARGIN), height - MARGIN - high), left))
        left += ink.shape[1] + int(gap)
    return places


def ink_and_paper(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two colours (0..255) at least 90 grey levels apart; mostly dark on light, some tinted."""
    dark, light = rng.uniform(0, 70), rng.uniform(170, 250)
    tint = rng.uniform(-1, 1, (2, 3)) * (45 if rng.random() < 0.35 else 6)
    tint -= tint.mean(1, keepdims=True)
    pair = np.clip(np.array([[dark], [light]]) + tint, 0, 255)
    return (pair[0], pair[1]) if rng.random() < 0.65 else (pair[1], pair[0])


def number_text(rng: np.random.Generator, size: tuple[int, int], length: int | None) -> str:
    """Random digits without leading zeros ("0" itself is a number)."""
    if length is None:
        if size == WIDE:
            length = 1 + int(rng.choice(4, p=WIDE_LENGTHS))
        else:
            length = 1 + int(rng.integers(MAX_LENGTH.get(size, 2)))
    first = int(rng.integers(0 if length == 1 else 1, 10))
    return "".join(str(d) for d in (first, *rng.integers(0, 10, length - 1)))


def write(
    rng: np.random.Generator, text: str, size: tuple[int, int], held_out: bool = False
) -> tuple[list[np.ndarray], list[tuple[int, int]]]:
    """The ink of each digit of `text`, as large as a canvas of `size` allows, and its place."""
    source = handwriting(held_out).glyphs
    glyphs = [source[int(d)][int(rng.integers(len(source[int(d)])))] for d in text]
    height = rng.uniform(14, 26)
    while True:
        inks = [draw_digit(rng, glyph, height * rng.uniform(0.9, 1.1)) for glyph in glyphs]
        places = lay_out(rng, inks, size)
        if places is not None:
            return inks, places
        height *= 0.95  # a canvas of 112 px has room but for four wide digits near 26 px


def marks_of(text: str, inks: list[np.ndarray], places: list[tuple[int, int]]) -> tuple[Mark, ...]:
    """The digits of `text` where they stand."""
    return tuple(
        Mark(digit, None, top, left, top + ink.shape[0], left + ink.shape[1])
        for digit, ink, (top, left) in zip(text, inks, places, strict=True)
    )


def draw_number(
    rng: np.random.Generator,
    size: tuple[int, int] = WIDE,
    length: int | None = None,
    held_out: bool = False,
) -> Example:
    """A number of 1 to 4 handwritten digits and its questions, reading it first."""
    text = number_text(rng, size, length)
    inks, places = write(rng, text, size, held_out)
    return show_number(rng, size, inks, marks_of(text, inks, places))


def show_number(
    rng: np.random.Generator,
    size: tuple[int, int],
    inks: list[np.ndarray],
    marks: tuple[Mark, ...],
) -> Example:
    """The photograph of a sheet with these digits, and its questions."""
    ink_colour, paper_colour = ink_and_paper(rng)
    alpha = np.zeros(size, np.float32)
    for ink, mark in zip(inks, marks, strict=True):
        window = alpha[mark.top : mark.bottom, mark.left : mark.right]
        np.maximum(window, ink, out=window)
    sheet = paper(rng, size, paper_colour)
    sheet += alpha[:, :, None] * (ink_colour.astype(np.float32) - sheet)
    text = "".join(mark.name for mark in marks)
    turns: list[Turn] = [(READ[int(rng.integers(len(READ)))], text, "number")]
    if rng.random() < 0.3:
        turns.append((HOW_MANY_DIGITS, str(len(text)), "digits"))
    targets = targets_from(marks, box_coverage(marks, size), size)
    return Example(photograph(rng, sheet), tuple(turns), targets, marks)
