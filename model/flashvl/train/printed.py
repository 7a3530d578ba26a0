"""Printed text: fonts that may be used, words split into training and held-out, ink on a mask.

Fonts come with what is installed anyway, and none is copied into this package: Pillow's built-in
one (Aileron, public domain) and, from matplotlib, DejaVu (Bitstream Vera licence, free to use and
embed) and STIX (SIL Open Font Licence).

Words are spelled from syllables, so that reading them takes looking and not guessing, beside a few
that stand on receipts and signs. In training some are letters in any order: a model that has seen
syllables alone reads "satton" for "station", for no word it knows begins with two consonants.
Whether a text is held out is decided by its own hash: no held-out text is ever printed on a
training picture.
"""

from __future__ import annotations

import hashlib
import math
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from flashvl.train.seams import Box

LONGEST_WORD = 8
BUILT_IN = "Aileron"
FONTS = (
    BUILT_IN,
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSansMono.ttf",
    "DejaVuSerif.ttf",
    "STIXGeneral.ttf",
)
SMALLEST, LARGEST = 14, 22  # px of type; a letter of 10-px type is narrower than one patch
MOST_TURN = 4.0  # degrees

GOODS = ("milk", "bread", "tea", "rice", "eggs", "soap", "salt", "apples", "butter", "cheese",
         "coffee", "honey", "onions", "pasta", "sugar", "water")  # fmt: skip
SIGNS = ("exit", "open", "closed", "stop", "taxi", "hotel", "museum", "station", "bakery",
         "push", "pull", "office", "toilets", "garden", "library", "market")  # fmt: skip
ONSETS, VOWELS, CODAS = "bcdfghjklmnprstvwyz", "aeiou", "dklmnprstx"
LETTERS = "abcdefghijklmnopqrstuvwxyz"
NARROW = "fijlrt"  # several of them stand in one token
JUMBLED = 0.35  # of the training words
DOUBLED = 0.12  # of the letters of those
MOST_NARROW = 0.7  # of them; the share is drawn for each word
HELD_OUT_SHARE = 5  # one text in five


def is_held_out(text: str) -> bool:
    """Whether a text belongs to the held-out split; upper and lower case do not differ.

    Texts of up to two characters are too few to split, and belong to both: see `fits`.
    """
    return hashlib.sha256(text.lower().encode()).digest()[0] % HELD_OUT_SHARE == 0


def fits(text: str, held_out: bool) -> bool:
    """Whether a picture of this split may ask for `text`."""
    return len(text) <= 2 or is_held_out(text) == held_out


def spell(rng: np.random.Generator, length: int) -> str:
    """A word of `length` letters, consonant and vowel in turn."""
    text = ""
    while len(text) < length:
        text += ONSETS[int(rng.integers(len(ONSETS)))] + VOWELS[int(rng.integers(len(VOWELS)))]
        if rng.random() < 0.35:
            text += CODAS[int(rng.integers(len(CODAS)))]
    return text[:length]


def jumble(rng: np.random.Generator, length: int) -> str:
    """Letters in any order, more of them doubled and more of them narrow than by chance."""
    narrow = rng.uniform(0, MOST_NARROW)
    text = ""
    while len(text) < length:
        again = text != "" and rng.random() < DOUBLED
        letters = NARROW if rng.random() < narrow else LETTERS
        text += text[-1] if again else letters[int(rng.integers(len(letters)))]
    return text


def word(rng: np.random.Generator, held_out: bool, length: int | None = None) -> str:
    """A word of one split in one of three cases; of 2 to 8 letters, lengths uniform, by default.
    Only training words may be jumbled."""
    length = length or int(rng.integers(2, LONGEST_WORD + 1))
    signs = [sign for sign in SIGNS if len(sign) == length]
    while True:
        jumbled = not held_out and rng.random() < JUMBLED
        text = jumble(rng, length) if jumbled else spell(rng, length)
        if signs and rng.random() < 0.15:
            text = signs[int(rng.integers(len(signs)))]
        if fits(text, held_out):
            return (text, text.upper(), text.capitalize())[int(rng.integers(3))]


def number(rng: np.random.Generator, held_out: bool, length: int | None = None) -> str:
    """A number of 1 to 4 digits of one split, without a leading zero."""
    length = length or int(rng.integers(1, 5))
    while True:
        text = str(int(rng.integers(10 ** (length - 1) if length > 1 else 0, 10**length)))
        if fits(text, held_out):
            return text


def price(rng: np.random.Generator, held_out: bool) -> str:
    """An amount from 0.05 to 99.95 of one split."""
    while True:
        text = f"{int(rng.integers(1, 2000)) * 0.05:.2f}"
        if fits(text, held_out):
            return text


@lru_cache(maxsize=256)
def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """A font of FONTS at `size` px. Those but the built-in one need matplotlib, which has them."""
    if name == BUILT_IN:
        built_in = ImageFont.load_default(size)
        if not isinstance(built_in, ImageFont.FreeTypeFont):
            raise ImportError("this Pillow has no FreeType; install one of Pillow's own wheels")
        return built_in
    try:
        from matplotlib import get_data_path
    except ImportError as error:
        raise ImportError(
            f"the font {name} comes with matplotlib, which is not installed: "
            "pip install flashvl-kernels[train]"
        ) from error
    return ImageFont.truetype(
        str(Path(get_data_path()) / "fonts" / "ttf" / name), size,
        layout_engine=ImageFont.Layout.BASIC,
    )  # fmt: skip


class Printed(NamedTuple):
    """A text's ink, float32 [h, w] in 0..1, and the box of each of its characters in that."""

    text: str
    ink: np.ndarray
    characters: list[Box]


TRIES = 60  # of font and size, before a text counts as too long


def fitting(rng: np.random.Generator, text: str, height: int, width: int) -> Printed | None:
    """`text` in one of the fonts, sizes and turns that fit `height` x `width` px, at random; None
    if none was found."""
    for _ in range(TRIES):
        name = FONTS[int(rng.integers(len(FONTS)))]
        size = int(rng.integers(SMALLEST, LARGEST + 1))
        turn = rng.uniform(-MOST_TURN, MOST_TURN)
        if font(name, size).getlength(text) - size / 2 > width:  # its ink is not that much narrower
            continue
        mask, characters = ink_and_boxes(text, name, size, turn)
        if mask.shape[0] <= height and mask.shape[1] <= width:
            return Printed(text, mask, characters)
    return None


def ink(text: str, name: str, size: int, turn: float = 0.0) -> np.ndarray:
    """`text` printed and turned by `turn` degrees, cropped to its ink: float32 [h, w], 0..1."""
    return ink_and_boxes(text, name, size, turn)[0]


def ink_and_boxes(
    text: str, name: str, size: int, turn: float = 0.0
) -> tuple[np.ndarray, list[Box]]:
    """The ink of `text`, and the box of each of its characters in px of that ink."""
    type_face = font(name, size)
    left, top, right, bottom = (round(side) for side in type_face.getbbox(text))
    mask = Image.new("L", (right - left + 8, bottom - top + 8))
    ImageDraw.Draw(mask).text((4 - left, 4 - top), text, fill=255, font=type_face)
    flat = mask.size
    if turn:
        mask = mask.rotate(turn, Image.Resampling.BICUBIC, expand=True)
    values = np.asarray(mask, np.float32) / 255
    seen = values > 0.1
    rows, cols = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    boxes = []
    for index, character in enumerate(text):
        # Kerning moves a character: its own advance is what it adds to the text before it.
        start = type_face.getlength(text[: index + 1]) - type_face.getlength(character)
        x0, y0, x1, y1 = _ink_of(character, name, size)
        upright = Box(y0 + 4 - top, x0 + start + 4 - left, y1 + 4 - top, x1 + start + 4 - left)
        boxes.append(_turned(upright, turn, flat, mask.size).moved(-int(rows[0]), -int(cols[0])))
    return values[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1], boxes


@lru_cache(maxsize=4096)
def _ink_of(character: str, name: str, size: int) -> tuple[int, int, int, int]:
    """Where the ink of a character at the origin lies: left, top, right, bottom. Pillow's own box
    reaches as far as the advance, twice as wide as an "i" of typewriter type."""
    sheet = Image.new("L", (3 * size, 3 * size))
    ImageDraw.Draw(sheet).text((size, size), character, fill=255, font=font(name, size))
    found = sheet.point(lambda value: 255 * (value > 25)).getbbox()
    if found is None:
        raise ValueError(f"{name} prints nothing for {character!r} at {size} px")
    left, top, right, bottom = found
    return left - size, top - size, right - size, bottom - size


def _turned(box: Box, turn: float, flat: tuple[int, int], turned: tuple[int, int]) -> Box:
    """The box around `box` after Pillow turned a mask of `flat` (W, H) px, to one of `turned`."""
    cos, sin = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    corners = []
    for y, x in ((box.top, box.left), (box.top, box.right), (box.bottom, box.left),
                 (box.bottom, box.right)):  # fmt: skip
        across, down = x - flat[0] / 2, y - flat[1] / 2
        corners.append((cos * down - sin * across + turned[1] / 2,
                        cos * across + sin * down + turned[0] / 2))  # fmt: skip
    ys, xs = zip(*corners, strict=True)
    return Box(min(ys), min(xs), max(ys), max(xs))
