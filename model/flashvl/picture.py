"""The demo as one picture: what the model was shown and asked, and what it answered."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from flashvl.demo import Question, load_questions
from flashvl.generate import generate

if TYPE_CHECKING:
    from flashvl.model import FlashVL

COLUMNS, CELL, IMAGE_HEIGHT, GAP = 5, 300, 160, 12
LINE = 18  # px of a line of text
INK, FAINT, WRONG = "#1f2328", "#59636e", "#c1121f"


def draw(model: FlashVL, path: Path) -> None:
    """Ask every question of the demo and write the sheet of pictures, questions and answers."""
    by_image: dict[Path, list[Question]] = {}
    for question in load_questions():
        by_image.setdefault(question.image, []).append(question)
    lines = max(len(questions) for questions in by_image.values())
    height = IMAGE_HEIGHT + GAP + 2 * LINE * lines + GAP
    rows = -(-len(by_image) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (CELL + GAP) + GAP, rows * height + GAP), "white")
    for index, (image, questions) in enumerate(by_image.items()):
        left = GAP + index % COLUMNS * (CELL + GAP)
        top = GAP + index // COLUMNS * height
        _cell(model, sheet, (left, top), image, questions)
    sheet.save(path, optimize=True)


def _cell(
    model: FlashVL, sheet: Image.Image, at: tuple[int, int], image: Path, questions: list[Question]
) -> None:
    left, top = at
    with Image.open(image) as opened:
        shown = opened.convert("RGB")
    shown.thumbnail((CELL, IMAGE_HEIGHT))
    sheet.paste(shown, (left, top))
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(15)
    line = top + IMAGE_HEIGHT + GAP // 2
    for question in questions:
        answer = generate(model, question.image, question.question, max_new_tokens=16).text
        right = answer.strip() == question.answer
        pen.text((left, line), question.question, FAINT, font)
        told = answer if right else f"{answer}   (it is {question.answer})"
        pen.text((left, line + LINE), told, INK if right else WRONG, font)
        line += 2 * LINE
