"""Pictures that need tiles: small printed words, receipts, handwriting and shapes on canvases of
several tiles, where every question knows whether what it asks about lies on a tile seam.

Half of the examples are drawn to lie on a cut of plain tiles (64 px, no overlap) by at least
LEAST_SHARE of their extent, half to lie off every cut; what lies in between is drawn again. Where
an object lies under another grid, `TiledExample.seam` tells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from flashvl.train import printed
from flashvl.train.canvas import Turn, paper, photograph
from flashvl.train.dataset import CANVAS, SUBJECT, TRAIN, in_order, to_tensors
from flashvl.train.digits import draw_number, ink_and_paper
from flashvl.train.glyphs import Glyph, Pointer, of_marks, of_text, read_out
from flashvl.train.lookups import named, ranks_of
from flashvl.train.scenes import draw_scene
from flashvl.train.seams import Box, Seam, around, seam
from flashvl_kernels.tiles import TileGrid

TILE, PATCH = 64, 8
BIG, BROAD, HIGH = (128, 128), (64, 128), (128, 64)
PICTURES = (BIG, BROAD, HIGH)
PICTURE_SHARES = (0.6, 0.3, 0.1)

FAMILIES = ("word", "number", "handwritten", "scene")
LONGEST_NUMBER, LONGEST_PRICE = 4, 5  # characters
LEAST_SHARE = 0.1  # of an object's extent beyond the cut before it counts as on the seam
MARGIN = 2
TILED = 7  # second word of the random keys, so that they meet none of dataset.py's

READ_WORD = ("What word is printed?", "Read the word.", "What does the sign say?")
READ_PRINTED = ("What number is printed?", "Read the printed number.")
ASK_PRICE = "What is the price of {item}?"


@dataclass(frozen=True, eq=False)
class TiledExample:
    """A picture (uint8 [H, W, 3]), one question and what it is about.

    family: one of FAMILIES. boxes: of each object that the answer depends on, in px. more: further
    questions about the picture, for training. glyphs, pointers: what stands where, and which words
    of the questions and answers are about it; a case read from a file has none.
    """

    image: np.ndarray
    turn: Turn
    family: str
    boxes: tuple[Box, ...]
    more: tuple[Turn, ...] = ()
    glyphs: tuple[Glyph, ...] = ()
    pointers: tuple[Pointer, ...] = ()

    def seam(self, grid: TileGrid) -> Seam:
        """The seam of the object that `grid` splits most; whole only if all objects are."""
        seams = [seam(box, self.size, grid) for box in self.boxes]
        worst = max(seams, key=lambda found: found.share)
        return Seam(worst.depth, worst.share, all(found.whole for found in seams))

    @property
    def size(self) -> tuple[int, int]:
        return self.image.shape[0], self.image.shape[1]


def plain_grid(size: tuple[int, int]) -> TileGrid:
    """Tiles without overlap over a picture of `size` px."""
    return TileGrid(size[0] // TILE, size[1] // TILE, TILE // PATCH)


def _put(sheet: np.ndarray, mask: np.ndarray, top: int, left: int, colour: np.ndarray) -> Box:
    height, width = mask.shape
    window = sheet[top : top + height, left : left + width]
    window += mask[:, :, None] * (colour.astype(np.float32) - window)
    return Box(top, left, top + height, left + width)


def _print(
    rng: np.random.Generator, text: str, size: tuple[int, int]
) -> tuple[np.ndarray, list[Box]]:
    """The text's ink, and its characters' boxes in that, in a font, size and turn of its own that
    fit the picture."""
    while True:
        name = printed.FONTS[int(rng.integers(len(printed.FONTS)))]
        points = int(rng.integers(printed.SMALLEST, printed.LARGEST + 1))
        turn = rng.uniform(-printed.MOST_TURN, printed.MOST_TURN)
        mask, boxes = printed.ink_and_boxes(text, name, points, turn)
        if mask.shape[0] <= size[0] - 2 * MARGIN and mask.shape[1] <= size[1] - 2 * MARGIN:
            return mask, boxes


def draw_text(
    rng: np.random.Generator, size: tuple[int, int], text: str, turn: Turn, family: str
) -> TiledExample:
    """One printed text anywhere on a sheet."""
    colour, ground = ink_and_paper(rng)
    sheet = paper(rng, size, ground)
    mask, characters = _print(rng, text, size)
    top, left = (
        int(rng.integers(MARGIN, side - MARGIN - along + 1))
        for side, along in zip(size, mask.shape, strict=True)
    )
    box = _put(sheet, mask, top, left, colour)
    glyphs = of_text(text, [character.moved(top, left) for character in characters])
    return TiledExample(
        photograph(rng, sheet), turn, family, (box,),
        glyphs=tuple(glyphs), pointers=tuple(read_out(0, text)),
    )  # fmt: skip


def draw_receipt(rng: np.random.Generator, held_out: bool) -> TiledExample:
    """Two to five lines of goods and prices on a BIG sheet, and the price of one of them."""
    colour, ground = ink_and_paper(rng)
    sheet = paper(rng, BIG, ground)
    goods = rng.permutation(printed.GOODS)[: rng.integers(2, 6)].tolist()
    prices = [printed.price(rng, held_out) for _ in goods]
    name = printed.FONTS[int(rng.integers(len(printed.FONTS)))]
    points = int(rng.integers(printed.SMALLEST, 13))
    turn = float(rng.uniform(-1.5, 1.5))
    items = [printed.ink_and_boxes(item, name, points, turn) for item in goods]
    amounts = [printed.ink_and_boxes(amount, name, points, turn) for amount in prices]
    wide = sum(max(mask.shape[1] for mask, _ in column) for column in (items, amounts)) + 4
    tall = max(mask.shape[0] for mask, _ in items + amounts) + 3
    left = int(rng.integers(MARGIN, BIG[1] - MARGIN - wide + 1))
    right = int(rng.integers(left + wide, BIG[1] - MARGIN + 1))
    top = int(rng.integers(MARGIN, BIG[0] - MARGIN - tall * len(goods) + 1))
    boxes: list[Box] = []
    glyphs: list[Glyph] = []
    for line, (item, amount) in enumerate(zip(items, amounts, strict=True)):
        floor = top + (line + 1) * tall - 2  # the texts of a line end on it
        for column, (mask, characters) in enumerate((item, amount)):
            at = floor - mask.shape[0], right - mask.shape[1] if column else left
            boxes.append(_put(sheet, mask, *at, colour))
            text = (goods, prices)[column][line]
            glyphs += of_text(text, [box.moved(*at) for box in characters], len(boxes) - 1)
    asked = int(rng.integers(len(goods)))
    image = photograph(rng, sheet)
    lines = [asked, *(line for line in range(len(goods)) if line != asked)]
    turn_asked, *more = [
        (ASK_PRICE.format(item=goods[line]), prices[line], "price") for line in lines
    ]
    pointers = [p for turn, line in enumerate(lines) for p in _about_line(turn, line, glyphs)]
    return TiledExample(
        image, turn_asked, "number", (boxes[2 * asked + 1],),
        tuple(more), tuple(glyphs), tuple(pointers),
    )  # fmt: skip


def _about_line(turn: int, line: int, glyphs: list[Glyph]) -> list[Pointer]:
    """The pointers of a question for the price in a line, whose texts are two groups of glyphs."""
    item, price = (
        tuple(index for index, glyph in enumerate(glyphs) if glyph.group == group)
        for group in (2 * line, 2 * line + 1)
    )
    end = ASK_PRICE.index("{") + len(item) - 1  # the name's last letter
    spelled = [Pointer(turn, True, at, (index,)) for at, index in enumerate(price)]
    return [Pointer(turn, False, end, item), *spelled]


def draw_handwritten(
    rng: np.random.Generator, size: tuple[int, int], length: int, held_out: bool
) -> TiledExample:
    drawn = draw_number(rng, size, length, held_out)
    box = around([Box(m.top, m.left, m.bottom, m.right) for m in drawn.marks])
    question, answer, _ = drawn.turns[0]
    return TiledExample(
        drawn.image, (question, answer, "handwritten"), "handwritten", (box,),
        drawn.turns[1:], tuple(of_marks(drawn.marks)), tuple(read_out(0, answer)),
    )  # fmt: skip


def draw_shapes(rng: np.random.Generator, size: tuple[int, int]) -> TiledExample:
    """A scene and its leading question; the boxes are those of the shapes that it names, or of all
    where it names none that is there."""
    drawn = draw_scene(rng, size)
    turn = next(t for t in drawn.turns if t[2] in ("colour", "shape", "count", "relation"))
    meant = {rank for _, ranks in named(turn[0], drawn.marks) for rank in ranks}
    boxes = tuple(
        Box(m.top, m.left, m.bottom, m.right)
        for m, rank in zip(drawn.marks, ranks_of(drawn.marks), strict=True)
        if rank in meant or not meant
    )
    ranks = ranks_of(drawn.marks)
    in_line = [drawn.marks[ranks.index(rank)] for rank in range(len(ranks))]
    more = tuple(other for other in drawn.turns if other is not turn)
    pointers = [
        Pointer(number, False, last, about)
        for number, (question, _, _) in enumerate((turn, *more))
        for last, about in named(question, drawn.marks)
    ]
    return TiledExample(
        drawn.image, turn, "scene", boxes, more, tuple(of_marks(in_line)), tuple(pointers)
    )


def _painter(
    rng: np.random.Generator,
    size: tuple[int, int],
    family: str,
    held_out: bool,
    longest: int | None,
) -> Callable[[], TiledExample]:
    """Draws an example of a family; what must not depend on the seam (the length of a text, above
    all) is settled here, before any is thrown away. longest: of its texts, in characters."""
    most = printed.LONGEST_WORD if longest is None else longest
    if family == "word":
        short = most < printed.LONGEST_WORD
        length = int(rng.integers(min(2, most), most + 1)) if short else None
        text = printed.word(rng, held_out, length)
        turn = (READ_WORD[int(rng.integers(len(READ_WORD)))], text, "word")
        return lambda: draw_text(rng, size, text, turn, "word")
    if family == "number":
        if size == BIG and rng.random() < 0.4 and most >= LONGEST_PRICE:
            return lambda: draw_receipt(rng, held_out)
        length = int(rng.integers(1, most + 1)) if most < LONGEST_NUMBER else None
        text = printed.number(rng, held_out, length)
        turn = (READ_PRINTED[int(rng.integers(len(READ_PRINTED)))], text, "printed")
        return lambda: draw_text(rng, size, text, turn, "number")
    if family == "handwritten":
        length = int(rng.integers(1, min(most, 2 if size == HIGH else LONGEST_NUMBER) + 1))
        return lambda: draw_handwritten(rng, size, length, held_out)
    if family == "scene":
        return lambda: draw_shapes(rng, size)
    raise ValueError(f"family is {family!r}: it must be one of {', '.join(FAMILIES)}")


MOST_DRAWS = 200


def draw(
    rng: np.random.Generator,
    size: tuple[int, int],
    family: str,
    on_seam: bool,
    held_out: bool = False,
    longest: int | None = None,
) -> TiledExample:
    """An example of a family that lies on (or off) the seams of plain tiles. longest: of the texts
    to read, in characters; by default up to 8 letters, 4 digits or a price."""
    grid = plain_grid(size)
    while True:
        paint = _painter(rng, size, family, held_out, longest)
        for _ in range(MOST_DRAWS):  # a long word in wide letters may fit into no tile
            made = paint()
            found = made.seam(grid)
            if found.share >= LEAST_SHARE if on_seam else not found.on:
                return made


def example(
    seed: int, index: int, size: tuple[int, int], family: str, longest: int | None = None
) -> TiledExample:
    """Training example `index` of a seed; on a seam with probability one half."""
    rng = np.random.default_rng((TRAIN, TILED, seed, index))
    return draw(rng, size, family, bool(rng.random() < 0.5), longest=longest)


def batch_kind(seed: int, number: int) -> tuple[tuple[int, int], str]:
    """Picture size and family of batch `number`: one of each a batch, so that pictures stack and
    conversations are of like length."""
    size = np.random.default_rng((CANVAS, TILED, seed, number)).choice(3, p=PICTURE_SHARES)
    family = np.random.default_rng((SUBJECT, TILED, seed, number)).integers(len(FAMILIES))
    return PICTURES[int(size)], FAMILIES[int(family)]


def examples(seed: int, batch: int, number: int, longest: int | None = None) -> list[TiledExample]:
    """Batch `number`: examples number * batch .. (number + 1) * batch - 1, of one size."""
    size, family = batch_kind(seed, number)
    indices = range(number * batch, (number + 1) * batch)
    return [example(seed, index, size, family, longest) for index in indices]


def make_batch(seed: int, batch: int, number: int) -> dict[str, Any]:
    """Batch `number` as NumPy arrays."""
    size, family = batch_kind(seed, number)
    made = examples(seed, batch, number)
    grid = plain_grid(size)
    return {
        "images": np.stack([e.image for e in made]),
        "turns": [(e.turn,) for e in made],
        "family": family,
        "boxes": [e.boxes for e in made],
        "on_seam": np.array([e.seam(grid).on for e in made]),
    }


def stream(
    seed: int, start: int = 0, workers: int = 1, batch: int = 64
) -> Iterator[dict[str, Any]]:
    """Endless batches from batch number `start` on, the same for any number of workers.

    Each batch: images uint8 [B, H, W, 3] of one of PICTURES; turns, a list of B tuples of one
    (question, answer, kind); family; boxes, of what each question is about; on_seam bool [B], under
    plain tiles.
    """
    if batch < 1 or start < 0 or workers < 0:
        raise ValueError(
            f"stream needs batch >= 1, start >= 0 and workers >= 0, "
            f"got batch={batch}, start={start}, workers={workers}"
        )
    for arrays in in_order(partial(make_batch, seed, batch), start, workers):
        yield to_tensors(arrays)
