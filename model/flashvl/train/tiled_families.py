"""What the pictures that need tiles show: printed words and numbers, receipts, handwriting, shapes,
and pages of print to learn letters from.

A family's drafts settle what must not depend on the seam (a text, its length, font and size) before
any place is thrown away. Each draft then is one arrangement on the sheet, cheap to refuse: only the
one that is kept becomes a picture. All texts that are asked for fit into one tile, so that any of
them can lie on a seam or off it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from flashvl.train import digits, printed
from flashvl.train.canvas import Turn, paper, photograph
from flashvl.train.glyphs import Glyph, Pointer, of_marks, of_text, read_out
from flashvl.train.lookups import named, ranks_of
from flashvl.train.printed import Printed
from flashvl.train.scenes import draw_scene
from flashvl.train.seams import Box
from flashvl.train.tiled_example import BIG, TILE, TiledExample

FAMILIES = ("word", "number", "handwritten", "scene")
PAGE = "page"  # of training only
LONGEST_NUMBER, LONGEST_PRICE = 4, 5  # characters
MARGIN = 2
ROOM = TILE - 2 * MARGIN  # px of a tile that a text may fill

READ_WORD = ("What word is printed?", "Read the word.", "What does the sign say?")
READ_PRINTED = ("What number is printed?", "Read the printed number.")
ASK_PRICE = "What is the price of {item}?"
ASK_LINE = "What does line {line} say?"
MOST_ASKED = 4  # lines of a page
RECEIPT_TYPE = (14, 15)  # px; the widest goods and prices stand side by side in them


class Draft(NamedTuple):
    """An arrangement: the boxes of what is asked about, and how to make the example of it."""

    boxes: tuple[Box, ...]
    example: Callable[[], TiledExample]


Drafts = Callable[[], Draft]
Placed = tuple[Printed, int, int]  # a text, and the top and left of its ink on the sheet


def drafts(
    rng: np.random.Generator,
    size: tuple[int, int],
    family: str,
    held_out: bool,
    longest: int | None = None,
) -> Drafts:
    """Arrangements of one example of a family. longest: of the texts to read, in characters; by
    default up to 8 letters, 4 digits or a price."""
    most = printed.LONGEST_WORD if longest is None else longest
    if family == "word":
        return word_drafts(rng, size, held_out, int(rng.integers(min(2, most), most + 1)))
    if family == "number":
        if size == BIG and rng.random() < 0.4 and most >= LONGEST_PRICE:
            return receipt_drafts(rng, held_out)
        length = int(rng.integers(1, min(most, LONGEST_NUMBER) + 1))
        return number_drafts(rng, size, held_out, length)
    if family == "handwritten":
        length = int(rng.integers(1, min(most, LONGEST_NUMBER) + 1))
        return handwritten_drafts(rng, size, held_out, length)
    if family == "scene":
        return lambda: scene_draft(rng, size)
    if family == PAGE:
        return page_drafts(rng, size, held_out, most)
    raise ValueError(f"family is {family!r}: it must be one of {', '.join((*FAMILIES, PAGE))}")


def word_drafts(
    rng: np.random.Generator, size: tuple[int, int], held_out: bool, length: int
) -> Drafts:
    """A word of `length` letters that fits a tile in some font, anywhere on a sheet."""
    text = _for_a_tile(rng, lambda: printed.word(rng, held_out, length))
    turn = (READ_WORD[int(rng.integers(len(READ_WORD)))], text.text, "word")
    return _text_drafts(rng, size, text, turn, "word")


def number_drafts(
    rng: np.random.Generator, size: tuple[int, int], held_out: bool, length: int
) -> Drafts:
    """A printed number of `length` digits, anywhere on a sheet."""
    text = _for_a_tile(rng, lambda: printed.number(rng, held_out, length))
    turn = (READ_PRINTED[int(rng.integers(len(READ_PRINTED)))], text.text, "printed")
    return _text_drafts(rng, size, text, turn, "number")


def _for_a_tile(rng: np.random.Generator, say: Callable[[], str]) -> Printed:
    """The first of the texts that `say` gives that a tile has room for."""
    while True:
        text = printed.fitting(rng, say(), ROOM, ROOM)
        if text is not None:
            return text


def _text_drafts(
    rng: np.random.Generator, size: tuple[int, int], text: Printed, turn: Turn, family: str
) -> Drafts:
    def draft() -> Draft:
        place = _anywhere(rng, size, text.ink.shape)
        (box,) = _boxes([(text, *place)])

        def example() -> TiledExample:
            image, glyphs = _photographed(rng, size, [(text, *place)])
            pointers = tuple(read_out(0, text.text))
            return TiledExample(image, turn, family, (box,), (), glyphs, pointers)

        return Draft((box,), example)

    return draft


def receipt_drafts(rng: np.random.Generator, held_out: bool) -> Drafts:
    """Two to five lines of goods and prices on a BIG sheet, and the price of one of them."""
    goods = rng.permutation(printed.GOODS)[: rng.integers(2, 6)].tolist()
    prices = [printed.price(rng, held_out) for _ in goods]
    name = printed.FONTS[int(rng.integers(len(printed.FONTS)))]
    points = int(rng.integers(RECEIPT_TYPE[0], RECEIPT_TYPE[1] + 1))
    turn = float(rng.uniform(-1.5, 1.5))
    items, amounts = (
        [Printed(text, *printed.ink_and_boxes(text, name, points, turn)) for text in column]
        for column in (goods, prices)
    )
    wide = sum(max(text.ink.shape[1] for text in column) for column in (items, amounts)) + 4
    tall = max(text.ink.shape[0] for text in items + amounts) + 3

    def draft() -> Draft:
        left = int(rng.integers(MARGIN, BIG[1] - MARGIN - wide + 1))
        right = int(rng.integers(left + wide, BIG[1] - MARGIN + 1))
        top = int(rng.integers(MARGIN, BIG[0] - MARGIN - tall * len(goods) + 1))
        placed: list[Placed] = []
        for line, (item, amount) in enumerate(zip(items, amounts, strict=True)):
            floor = top + (line + 1) * tall - 2  # the texts of a line end on it
            placed.append((item, floor - item.ink.shape[0], left))
            placed.append((amount, floor - amount.ink.shape[0], right - amount.ink.shape[1]))
        asked = int(rng.integers(len(goods)))
        box = _boxes(placed)[2 * asked + 1]

        def example() -> TiledExample:
            image, glyphs = _photographed(rng, BIG, placed)
            lines = [asked, *(line for line in range(len(goods)) if line != asked)]
            first, *more = [
                (ASK_PRICE.format(item=goods[line]), prices[line], "price") for line in lines
            ]
            pointers = [
                pointer
                for turn, line in enumerate(lines)
                for pointer in _price(turn, line, prices[line], glyphs)
            ]
            return TiledExample(
                image, first, "number", (box,), tuple(more), glyphs, tuple(pointers)
            )

        return Draft((box,), example)

    return draft


def page_drafts(
    rng: np.random.Generator, size: tuple[int, int], held_out: bool, longest: int
) -> Drafts:
    """Lines of one word or number each, as many as the sheet holds, and what some of them say."""
    texts: list[Printed] = []
    tops: list[int] = []
    top = MARGIN
    while True:
        length = int(rng.integers(min(2, longest), longest + 1))
        if rng.random() < 0.25:
            said = printed.number(rng, held_out, min(length, LONGEST_NUMBER))
        else:
            said = printed.word(rng, held_out, length)
        text = printed.fitting(rng, said, TILE, size[1] - 2 * MARGIN)
        if text is None:
            continue
        top += int(rng.integers(1, 5))
        if top + text.ink.shape[0] > size[0] - MARGIN:
            break
        texts.append(text)
        tops.append(top)
        top += text.ink.shape[0]

    def draft() -> Draft:
        placed = [
            (text, top, int(rng.integers(MARGIN, size[1] - MARGIN - text.ink.shape[1] + 1)))
            for text, top in zip(texts, tops, strict=True)
        ]
        lines = rng.permutation(len(texts))[:MOST_ASKED].tolist()
        box = _boxes(placed)[lines[0]]

        def example() -> TiledExample:
            image, glyphs = _photographed(rng, size, placed)
            first, *more = [
                (ASK_LINE.format(line=line + 1), texts[line].text, "line") for line in lines
            ]
            pointers = [
                pointer
                for turn, line in enumerate(lines)
                for pointer in _line(turn, line, texts[line].text, glyphs)
            ]
            return TiledExample(image, first, PAGE, (box,), tuple(more), glyphs, tuple(pointers))

        return Draft((box,), example)

    return draft


def handwritten_drafts(
    rng: np.random.Generator, size: tuple[int, int], held_out: bool, length: int
) -> Drafts:
    """A handwritten number that fits a tile, anywhere on a sheet."""
    text = digits.number_text(rng, size, length)
    inks, places = digits.write(rng, text, (TILE, TILE), held_out)
    tops, lefts = zip(*places, strict=True)
    within = [(top - min(tops), left - min(lefts)) for top, left in places]
    extent = [
        max(place[axis] + ink.shape[axis] for place, ink in zip(within, inks, strict=True))
        for axis in (0, 1)
    ]

    def draft() -> Draft:
        top, left = _anywhere(rng, size, extent)
        moved = [(top + down, left + right) for down, right in within]
        box = Box(top, left, top + extent[0], left + extent[1])

        def example() -> TiledExample:
            drawn = digits.show_number(rng, size, inks, digits.marks_of(text, inks, moved))
            question, answer, _ = drawn.turns[0]
            return TiledExample(
                drawn.image, (question, answer, "handwritten"), "handwritten", (box,),
                drawn.turns[1:], tuple(of_marks(drawn.marks)), tuple(read_out(0, answer)),
            )  # fmt: skip

        return Draft((box,), example)

    return draft


def scene_draft(rng: np.random.Generator, size: tuple[int, int]) -> Draft:
    """A scene and its leading question; the boxes are those of the shapes that it names, or of all
    where it names none that is there."""
    drawn = draw_scene(rng, size)
    turn = next(t for t in drawn.turns if t[2] in ("colour", "shape", "count", "relation"))
    meant = {rank for _, ranks in named(turn[0], drawn.marks) for rank in ranks}
    ranks = ranks_of(drawn.marks)
    boxes = tuple(
        Box(m.top, m.left, m.bottom, m.right)
        for m, rank in zip(drawn.marks, ranks, strict=True)
        if rank in meant or not meant
    )
    in_line = [drawn.marks[ranks.index(rank)] for rank in range(len(ranks))]
    more = tuple(other for other in drawn.turns if other is not turn)
    pointers = [
        Pointer(number, False, last, about)
        for number, (question, _, _) in enumerate((turn, *more))
        for last, about in named(question, drawn.marks)
    ]
    example = TiledExample(
        drawn.image, turn, "scene", boxes, more, tuple(of_marks(in_line)), tuple(pointers)
    )
    return Draft(boxes, lambda: example)


def _anywhere(
    rng: np.random.Generator, size: tuple[int, int], extent: Sequence[int]
) -> tuple[int, int]:
    """Top and left of something of `extent` (H, W) px on a sheet."""
    top, left = (
        int(rng.integers(MARGIN, side - MARGIN - along + 1))
        for side, along in zip(size, extent, strict=True)
    )
    return top, left


def _boxes(placed: Sequence[Placed]) -> list[Box]:
    return [
        Box(top, left, top + text.ink.shape[0], left + text.ink.shape[1])
        for text, top, left in placed
    ]


def _photographed(
    rng: np.random.Generator, size: tuple[int, int], placed: Sequence[Placed]
) -> tuple[np.ndarray, tuple[Glyph, ...]]:
    """The photograph of a sheet with these texts, all in one colour, and their glyphs, a group for
    each text."""
    colour, ground = digits.ink_and_paper(rng)
    sheet = paper(rng, size, ground)
    glyphs: list[Glyph] = []
    for group, (text, top, left) in enumerate(placed):
        height, width = text.ink.shape
        window = sheet[top : top + height, left : left + width]
        window += text.ink[:, :, None] * (colour.astype(np.float32) - window)
        moved = [box.moved(top, left) for box in text.characters]
        glyphs += of_text(text.text, moved, group)
    return photograph(rng, sheet), tuple(glyphs)


def _group(glyphs: Sequence[Glyph], group: int) -> tuple[int, ...]:
    return tuple(index for index, glyph in enumerate(glyphs) if glyph.group == group)


def _price(turn: int, line: int, said: str, glyphs: Sequence[Glyph]) -> list[Pointer]:
    """The pointers of a question for the price in a line, whose texts are two groups of glyphs."""
    item, price = _group(glyphs, 2 * line), _group(glyphs, 2 * line + 1)
    end = ASK_PRICE.index("{") + len(item) - 1  # the name's last letter
    return [Pointer(turn, False, end, item), *read_out(turn, said, price[0])]


def _line(turn: int, line: int, said: str, glyphs: Sequence[Glyph]) -> list[Pointer]:
    """The pointers of a question for what a line says, whose text is one group of glyphs."""
    text = _group(glyphs, line)
    return [Pointer(turn, False, ASK_LINE.index("{"), text), *read_out(turn, said, text[0])]
