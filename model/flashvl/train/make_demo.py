"""Draws the pictures `make demo` asks about, larger than a canvas: held-out handwriting, receipts
and signs of held-out texts, scenes.

    python -m flashvl.train.make_demo [FOLDER]

They are 3 to 4 times a canvas and of odd proportions, so the demo goes through the real resize.
No sensor noise: it would make the files ten times as large and vanish in the resize.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from flashvl.train import printed
from flashvl.train.canvas import paper
from flashvl.train.dataset import HELD_OUT
from flashvl.train.digits import draw_digit, handwriting, lay_out
from flashvl.train.scenes import RGB, shape_mask
from flashvl.train.tiled_families import ASK_PRICE

FOLDER = Path(__file__).parents[1] / "assets" / "demo"

Colour = tuple[int, int, int]
# file stem, height, width, digits and which held-out writing of each (picked to be legible),
# digit height in px, ink, paper, questions
Number = tuple[str, int, int, str, tuple[int, ...], int, Colour, Colour, dict[str, str]]
NUMBERS: tuple[Number, ...] = (
    ("number-4071", 256, 448, "4071", (14, 11, 10, 34), 84, (28, 34, 80), (242, 238, 226),
     {"What number is written?": "4071", "How many digits are there?": "4"}),
    ("number-862", 270, 480, "862", (30, 19, 19), 92, (240, 240, 230), (26, 44, 60),
     {"Read the number.": "862"}),
)  # fmt: skip

# file stem, height, width, font, px of type, ink, paper, (goods, price) a line, what is asked for
Receipt = tuple[
    str, int, int, str, int, Colour, Colour, tuple[tuple[str, str], ...], tuple[int, ...]
]
RECEIPTS: tuple[Receipt, ...] = (
    ("receipt-three", 384, 384, "DejaVuSansMono.ttf", 44, (40, 40, 48), (246, 244, 238),
     (("bread", "24.10"), ("honey", "11.15"), ("tea", "31.50")), (0, 2)),
    ("receipt-four", 400, 400, "DejaVuSans.ttf", 48, (30, 44, 92), (238, 232, 214),
     (("coffee", "18.55"), ("milk", "46.30"), ("rice", "75.90"), ("water", "98.10")), (1, 3)),
)  # fmt: skip

# file stem, height, width, text, font, px of type, top, left, ink, paper, question
Sign = tuple[str, int, int, str, str, int, int, int, Colour, Colour, str]
SIGNS: tuple[Sign, ...] = (
    ("sign-bakery", 230, 440, "BAKERY", "DejaVuSans-Bold.ttf", 62, 90, 96,
     (250, 246, 240), (120, 30, 36), "What does the sign say?"),
    ("sign-open", 400, 400, "Open", "DejaVuSerif.ttf", 70, 170, 150,
     (20, 60, 40), (226, 234, 226), "What word is printed?"),
)  # fmt: skip

# colour, shape, top, left, side in px
Thing = tuple[str, str, int, int, int]
SCENES: tuple[tuple[str, int, int, Colour, Sequence[Thing], dict[str, str]], ...] = (
    ("scene-three", 256, 448, (236, 236, 232),
     (("red", "circle", 120, 36, 88), ("blue", "square", 40, 182, 80),
      ("green", "triangle", 132, 316, 92)),
     {"Is the red circle left of the blue square?": "yes", "What colour is the triangle?": "green",
      "How many shapes are there?": "3"}),
    ("scene-stars", 250, 430, (30, 30, 36),
     (("yellow", "star", 20, 30, 74), ("orange", "star", 140, 110, 78),
      ("blue", "circle", 30, 190, 72), ("yellow", "star", 130, 250, 70),
      ("red", "star", 40, 330, 76)),
     {"How many stars are there?": "4", "What colour is the circle?": "blue"}),
    ("scene-tall", 440, 250, (214, 222, 216),
     (("purple", "cross", 50, 40, 84), ("yellow", "square", 190, 130, 88),
      ("red", "triangle", 320, 50, 86)),
     {"What shape is yellow?": "square", "Is the red triangle above the purple cross?": "no"}),
)  # fmt: skip


def _picture(sheet: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(np.rint(sheet), 0, 255).astype(np.uint8))


def number_picture(
    text: str,
    writings: Sequence[int],
    size: tuple[int, int],
    high: int,
    ink: Colour,
    page: Colour,
) -> Image.Image:
    """A number in held-out handwriting; the same digits on every run."""
    rng = np.random.default_rng((HELD_OUT, *size, int(text)))
    glyphs = handwriting(held_out=True).glyphs
    inks = [
        draw_digit(rng, glyphs[int(digit)][writing], high)
        for digit, writing in zip(text, writings, strict=True)
    ]
    places = lay_out(rng, inks, size)
    if places is None:
        raise ValueError(f"{text} at {high} px does not fit {size[1]}x{size[0]} px: draw it lower")
    sheet = paper(rng, size, np.array(page))
    for drawn, (top, left) in zip(inks, places, strict=True):
        window = sheet[top : top + drawn.shape[0], left : left + drawn.shape[1]]
        window += drawn[:, :, None] * (np.array(ink, np.float32) - window)
    return _picture(sheet)


def text_picture(
    size: tuple[int, int], font: str, px: int, ink: Colour, page: Colour,
    texts: Sequence[tuple[str, int, int]],
) -> Image.Image:  # fmt: skip
    """Printed texts by their top and left; a negative left counts from the right edge."""
    sheet = paper(np.random.default_rng((HELD_OUT, *size)), size, np.array(page))
    for text, top, left in texts:
        drawn = printed.ink(text, font, px)
        height, width = drawn.shape
        first = left if left >= 0 else size[1] + left - width
        if first < 0 or first + width > size[1] or top + height > size[0]:
            raise ValueError(f"{text!r} at {px} px does not fit {size[1]}x{size[0]} px there")
        window = sheet[top : top + height, first : first + width]
        window += drawn[:, :, None] * (np.array(ink, np.float32) - window)
    return _picture(sheet)


def receipt_texts(receipt: Receipt) -> list[tuple[str, int, int]]:
    """Goods on the left, prices on the right, whose lines end on one floor."""
    _, _, _, font, px, _, _, lines, _ = receipt
    texts = []
    for number, line in enumerate(lines):
        floor = 40 + (number + 1) * px * 4 // 3
        for text, left in zip(line, (24, -24), strict=True):
            texts.append((text, floor - printed.ink(text, font, px).shape[0], left))
    return texts


def scene_picture(size: tuple[int, int], page: Colour, things: Sequence[Thing]) -> Image.Image:
    rng = np.random.default_rng((HELD_OUT, *size))
    sheet = paper(rng, size, np.array(page))
    for colour, shape, top, left, side in things:
        window = sheet[top : top + side, left : left + side]
        window += shape_mask(shape, side, 0)[:, :, None] * (
            np.array(RGB[colour], np.float32) - window
        )
    return _picture(sheet)


def write_demo(folder: Path = FOLDER) -> None:
    """The PNG files and demo.json: [{"image", "turns": [{"question", "answer"}]}]."""
    folder.mkdir(parents=True, exist_ok=True)
    entries: list[dict[str, Any]] = []

    def add(stem: str, picture: Image.Image, turns: dict[str, str]) -> None:
        picture.save(folder / f"{stem}.png", optimize=True)
        asked = [{"question": q, "answer": a} for q, a in turns.items()]
        entries.append({"image": f"{stem}.png", "turns": asked})

    for stem, height, width, text, writings, high, ink, page, turns in NUMBERS:
        picture = number_picture(text, writings, (height, width), high, ink, page)
        add(stem, picture, turns)
    for receipt in RECEIPTS:
        stem, height, width, font, px, ink, page, lines, asked_for = receipt
        picture = text_picture((height, width), font, px, ink, page, receipt_texts(receipt))
        add(stem, picture, {ASK_PRICE.format(item=lines[n][0]): lines[n][1] for n in asked_for})
    for stem, height, width, text, font, px, top, left, ink, page, question in SIGNS:
        picture = text_picture((height, width), font, px, ink, page, [(text, top, left)])
        add(stem, picture, {question: text})
    for stem, height, width, page, things, turns in SCENES:
        add(stem, scene_picture((height, width), page, things), turns)
    (folder / "demo.json").write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_demo(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
