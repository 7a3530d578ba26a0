"""What stands where in a picture that needs tiles, and which words are about it.

A glyph is a printed or written character or a shape, with the text (or scene) that it belongs to
and its place in that. A pointer says which glyphs a token of a conversation is about: the one
before the k-th character of an answer that is read out, the k-th glyph; a name in a question, what
it names.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from flashvl.train.canvas import COLOURS, SYMBOLS, Mark
from flashvl.train.seams import Box

CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ."
GLYPHS = SYMBOLS + len(CHARACTERS)  # canvas.py's classes first, so that a digit is a digit
MOST_ORDER = 8  # of printed.LONGEST_WORD letters
ORDERS = 1 + MOST_ORDER


class Glyph(NamedTuple):
    """symbol, colour: classes, 0 is the background (a character has colour 0). group: which text of
    the picture, from 0. order: its place in that, from 1; of a scene, from the left."""

    symbol: int
    colour: int
    group: int
    order: int
    box: Box


class Pointer(NamedTuple):
    """In turn `turn`, the token that holds character `at` of the question, or the one before
    character `at` of the answer, is about glyphs `glyphs` of the picture."""

    turn: int
    in_answer: bool
    at: int
    glyphs: tuple[int, ...]


def symbol_of(character: str) -> int:
    """The class of a digit, a letter or a full stop."""
    if character.isdecimal():
        return Mark(character, None, 0, 0, 0, 0).symbol
    return SYMBOLS + CHARACTERS.index(character)


def of_text(text: str, boxes: Sequence[Box], group: int = 0) -> list[Glyph]:
    """The glyphs of a text whose characters have these boxes."""
    pairs = enumerate(zip(text, boxes, strict=True), 1)
    return [Glyph(symbol_of(character), 0, group, order, box) for order, (character, box) in pairs]


def of_marks(marks: Iterable[Mark]) -> list[Glyph]:
    """The glyphs of shapes or digits that stand in this order."""
    return [
        Glyph(
            mark.symbol,
            0 if mark.colour is None else 1 + COLOURS.index(mark.colour),
            0,
            order,
            Box(mark.top, mark.left, mark.bottom, mark.right),
        )
        for order, mark in enumerate(marks, 1)
    ]


def read_out(turn: int, answer: str, first: int = 0) -> list[Pointer]:
    """An answer that copies a text whose glyphs count from `first`."""
    return [Pointer(turn, True, at, (first + at,)) for at in range(len(answer))]
