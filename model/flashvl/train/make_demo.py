"""Draws the pictures `make demo` asks about: held-out handwriting and scenes, larger than a canvas.

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

from flashvl.train.canvas import paper
from flashvl.train.dataset import HELD_OUT
from flashvl.train.digits import draw_digit, handwriting, lay_out
from flashvl.train.scenes import RGB, shape_mask

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
    ("number-39", 230, 230, "39", (19, 31), 78, (60, 20, 30), (226, 226, 226),
     {"Which number do you see?": "39"}),
    ("number-2586", 216, 400, "2586", (25, 44, 20, 22), 66, (20, 20, 20), (208, 216, 222),
     {"What number is this?": "2586"}),
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
    ("scene-two", 300, 300, (122, 124, 120),
     (("orange", "cross", 60, 30, 106), ("purple", "star", 150, 170, 110)),
     {"What is left of the purple star?": "orange cross", "What shape is purple?": "star"}),
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
    for stem, height, width, page, things, turns in SCENES:
        add(stem, scene_picture((height, width), page, things), turns)
    (folder / "demo.json").write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_demo(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
