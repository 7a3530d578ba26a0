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
from flashvl.train.lookups import named, ranks_of
from flashvl.train.scenes import draw_scene
from flashvl.train.seams import Box, Seam, around, seam
from flashvl_kernels.tiles import TileGrid

TILE, PATCH = 64, 8
BIG, BROAD, HIGH = (128, 128), (64, 128), (128, 64)
PICTURES = (BIG, BROAD, HIGH)
PICTURE_SHARES = (0.6, 0.3, 0.1)

FAMILIES = ("word", "number", "handwritten", "scene")
LEAST_SHARE = 0.1  # of an object's extent beyond the cut before it counts as on the seam
MARGIN = 2
TILED = 7  # second word of the random keys, so that they meet none of dataset.py's

READ_WORD = ("What word is printed?", "Read the word.", "What does the sign say?")
READ_PRINTED = ("What number is printed?", "Read the printed number.")
ASK_PRICE = "What is the price of {item}?"


@dataclass(frozen=True, eq=False)
class TiledExample:
    """A picture (uint8 [H, W, 3]), one question and what it is about.

    family: one of FAMILIES. boxes: of each object that the answer depends on, in px.
    """

    image: np.ndarray
    turn: Turn
    family: str
    boxes: tuple[Box, ...]

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


def _print(rng: np.random.Generator, text: str, size: tuple[int, int]) -> np.ndarray:
    """The text's ink in a font, size and turn of its own that fit the picture."""
    while True:
        name = printed.FONTS[int(rng.integers(len(printed.FONTS)))]
        points = int(rng.integers(printed.SMALLEST, printed.LARGEST + 1))
        mask = printed.ink(text, name, points, rng.uniform(-printed.MOST_TURN, printed.MOST_TURN))
        if mask.shape[0] <= size[0] - 2 * MARGIN and mask.shape[1] <= size[1] - 2 * MARGIN:
            return mask


def draw_text(
    rng: np.random.Generator, size: tuple[int, int], text: str, turn: Turn, family: str
) -> TiledExample:
    """One printed text anywhere on a sheet."""
    colour, ground = ink_and_paper(rng)
    sheet = paper(rng, size, ground)
    mask = _print(rng, text, size)
    top, left = (
        int(rng.integers(MARGIN, side - MARGIN - along + 1))
        for side, along in zip(size, mask.shape, strict=True)
    )
    box = _put(sheet, mask, top, left, colour)
    return TiledExample(photograph(rng, sheet), turn, family, (box,))


def draw_receipt(rng: np.random.Generator, held_out: bool) -> TiledExample:
    """Two to five lines of goods and prices on a BIG sheet, and the price of one of them."""
    colour, ground = ink_and_paper(rng)
    sheet = paper(rng, BIG, ground)
    goods = rng.permutation(printed.GOODS)[: rng.integers(2, 6)].tolist()
    prices = [printed.price(rng, held_out) for _ in goods]
    name = printed.FONTS[int(rng.integers(len(printed.FONTS)))]
    points = int(rng.integers(printed.SMALLEST, 13))
    turn = float(rng.uniform(-1.5, 1.5))
    items = [printed.ink(item, name, points, turn) for item in goods]
    amounts = [printed.ink(amount, name, points, turn) for amount in prices]
    wide = max(mask.shape[1] for mask in items) + max(mask.shape[1] for mask in amounts) + 4
    tall = max(mask.shape[0] for mask in items + amounts) + 3
    left = int(rng.integers(MARGIN, BIG[1] - MARGIN - wide + 1))
    right = int(rng.integers(left + wide, BIG[1] - MARGIN + 1))
    top = int(rng.integers(MARGIN, BIG[0] - MARGIN - tall * len(goods) + 1))
    boxes = []
    for line, (item, amount) in enumerate(zip(items, amounts, strict=True)):
        floor = top + (line + 1) * tall - 2  # the texts of a line end on it
        _put(sheet, item, floor - item.shape[0], left, colour)
        start = right - amount.shape[1]
        boxes.append(_put(sheet, amount, floor - amount.shape[0], start, colour))
    asked = int(rng.integers(len(goods)))
    question = ASK_PRICE.format(item=goods[asked])
    turn_asked = (question, prices[asked], "price")
    return TiledExample(photograph(rng, sheet), turn_asked, "number", (boxes[asked],))


def draw_handwritten(
    rng: np.random.Generator, size: tuple[int, int], length: int, held_out: bool
) -> TiledExample:
    drawn = draw_number(rng, size, length, held_out)
    box = around([Box(m.top, m.left, m.bottom, m.right) for m in drawn.marks])
    question, answer, _ = drawn.turns[0]
    return TiledExample(drawn.image, (question, answer, "handwritten"), "handwritten", (box,))


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
    return TiledExample(drawn.image, turn, "scene", boxes)


def _painter(
    rng: np.random.Generator, size: tuple[int, int], family: str, held_out: bool
) -> Callable[[], TiledExample]:
    """Draws an example of a family; what must not depend on the seam (the length of a text, above
    all) is settled here, before any is thrown away."""
    if family == "word":
        text = printed.word(rng, held_out)
        turn = (READ_WORD[int(rng.integers(len(READ_WORD)))], text, "word")
        return lambda: draw_text(rng, size, text, turn, "word")
    if family == "number":
        if size == BIG and rng.random() < 0.4:
            return lambda: draw_receipt(rng, held_out)
        text = printed.number(rng, held_out)
        turn = (READ_PRINTED[int(rng.integers(len(READ_PRINTED)))], text, "printed")
        return lambda: draw_text(rng, size, text, turn, "number")
    if family == "handwritten":
        length = int(rng.integers(1, 3 if size == HIGH else 5))
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
) -> TiledExample:
    """An example of a family that lies on (or off) the seams of plain tiles."""
    grid = plain_grid(size)
    while True:
        paint = _painter(rng, size, family, held_out)
        for _ in range(MOST_DRAWS):  # a long word in wide letters may fit into no tile
            made = paint()
            found = made.seam(grid)
            if found.share >= LEAST_SHARE if on_seam else not found.on:
                return made


def example(seed: int, index: int, size: tuple[int, int], family: str) -> TiledExample:
    """Training example `index` of a seed; on a seam with probability one half."""
    rng = np.random.default_rng((TRAIN, TILED, seed, index))
    return draw(rng, size, family, bool(rng.random() < 0.5))


def batch_kind(seed: int, number: int) -> tuple[tuple[int, int], str]:
    """Picture size and family of batch `number`: one of each a batch, so that pictures stack and
    conversations are of like length."""
    size = np.random.default_rng((CANVAS, TILED, seed, number)).choice(3, p=PICTURE_SHARES)
    family = np.random.default_rng((SUBJECT, TILED, seed, number)).integers(len(FAMILIES))
    return PICTURES[int(size)], FAMILIES[int(family)]


def make_batch(seed: int, batch: int, number: int) -> dict[str, Any]:
    """Batch `number` as NumPy arrays: examples number * batch .. (number + 1) * batch - 1."""
    size, family = batch_kind(seed, number)
    made = [example(seed, number * batch + i, size, family) for i in range(batch)]
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
