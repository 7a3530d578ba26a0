"""The README's picture: the demo's pictures, its questions, and what the shipped model answers.

    python -m flashvl.train.demo_sheet [FILE]    # docs/demo.png

An answer that is wrong is red, with the right one beside it.
"""

from __future__ import annotations

import sys
from itertools import groupby
from pathlib import Path

from PIL import Image, ImageDraw

from flashvl.demo import Question, load_questions
from flashvl.model import FlashVL
from flashvl.train.printed import BUILT_IN, font

SHEET = Path("docs/demo.png")
ACROSS = 5  # pictures a row
CELL, ROW, MARGIN = 312, 292, 12  # px
TALL = 160  # px of a picture
TYPE, LINE = 16, 18  # px
GREY, BLACK, RED = (87, 96, 106), (31, 35, 40), (207, 34, 46)


def draw(asked: list[tuple[Question, str]]) -> Image.Image:
    """Questions of one picture stand under it, each above its answer."""
    cells = [list(cell) for _, cell in groupby(asked, key=lambda pair: pair[0].image)]
    rows = -(-len(cells) // ACROSS)
    sheet = Image.new("RGB", (ACROSS * CELL + MARGIN, rows * ROW + MARGIN), "white")
    pen = ImageDraw.Draw(sheet)
    for number, cell in enumerate(cells):
        left, top = number % ACROSS * CELL + MARGIN, number // ACROSS * ROW + MARGIN
        with Image.open(cell[0][0].image) as picture:
            shown = picture.convert("RGB")
            shown.thumbnail((CELL - 2 * MARGIN, TALL))
            sheet.paste(shown, (left, top))
        top += TALL + 6
        for question, answer in cell:
            right = answer == question.answer
            text = answer if right else f"{answer} (is {question.answer})"
            for line, colour in ((question.question, GREY), (text, BLACK if right else RED)):
                pen.text((left, top), line, fill=colour, font=font(BUILT_IN, TYPE))
                top += LINE
    return sheet


def main(argv: list[str] | None = None) -> int:
    path = Path((argv or sys.argv[1:] or [str(SHEET)])[0])
    model = FlashVL.from_pretrained("tiny")
    asked = [(q, model.generate(q.image, q.question).text.strip()) for q in load_questions()]
    draw(asked).save(path, optimize=True)
    print(f"{path}: {sum(said == q.answer for q, said in asked)} of {len(asked)} as expected")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
