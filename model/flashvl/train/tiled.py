"""Pictures that need tiles: small printed words, receipts, handwriting and shapes on canvases of
several tiles, where every question knows whether what it asks about lies on a tile seam.

Half of the examples are drawn to lie on a cut of plain tiles (64 px, no overlap) by at least
LEAST_SHARE of their extent, half to lie off every cut; what lies in between is drawn again. Where
an object lies under another grid, `TiledExample.seam` tells.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flashvl.train.dataset import CANVAS, SUBJECT, TRAIN
from flashvl.train.seams import worst_seam
from flashvl.train.tiled_example import PICTURE_SHARES, PICTURES, TiledExample, plain_grid
from flashvl.train.tiled_families import FAMILIES, PAGE, drafts

SHARES = (0.35, 0.3, 0.2, 0.15)  # of FAMILIES, unless a stage says otherwise
LEAST_SHARE = 0.1  # of an object's extent beyond the cut before it counts as on the seam
TILED = 7  # second word of the random keys, so that they meet none of dataset.py's
MOST_DRAFTS = 400


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
        draft = drafts(rng, size, family, held_out, longest)
        for _ in range(MOST_DRAFTS):
            made = draft()
            found = worst_seam(made.boxes, size, grid)
            if found.share >= LEAST_SHARE if on_seam else not found.on:
                return made.example()


def example(
    seed: int, index: int, size: tuple[int, int], family: str, longest: int | None = None
) -> TiledExample:
    """Training example `index` of a seed; on a seam with probability one half."""
    rng = np.random.default_rng((TRAIN, TILED, seed, index))
    if family == PAGE:  # its lines lie where they lie
        return drafts(rng, size, family, False, longest)().example()
    return draw(rng, size, family, bool(rng.random() < 0.5), longest=longest)


def batch_kind(
    seed: int, number: int, pages: float = 0.0, shares: Sequence[float] = SHARES
) -> tuple[tuple[int, int], str]:
    """Picture size and family of batch `number`: one of each a batch, so that pictures stack and
    conversations are of like length. pages: the share of batches that are pages of print; shares:
    of FAMILIES among the others."""
    size = np.random.default_rng((CANVAS, TILED, seed, number)).choice(3, p=PICTURE_SHARES)
    rng = np.random.default_rng((SUBJECT, TILED, seed, number))
    family = FAMILIES[int(rng.choice(len(FAMILIES), p=shares))]
    return PICTURES[int(size)], PAGE if rng.random() < pages else family


def examples(
    seed: int, batch: int, number: int, kind: tuple[tuple[int, int], str],
    longest: int | None = None,
) -> list[TiledExample]:  # fmt: skip
    """Batch `number`: examples number * batch .. (number + 1) * batch - 1, of one size and family
    (see batch_kind)."""
    indices = range(number * batch, (number + 1) * batch)
    return [example(seed, index, *kind, longest) for index in indices]
