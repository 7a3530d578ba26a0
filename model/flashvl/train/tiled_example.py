"""An example on a canvas of several tiles: picture, question, and where what is asked lies."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flashvl.train.canvas import Turn
from flashvl.train.glyphs import Glyph, Pointer
from flashvl.train.seams import Box, Seam, worst_seam
from flashvl_kernels.tiles import TileGrid

TILE, PATCH = 64, 8
BIG, BROAD, HIGH = (128, 128), (64, 128), (128, 64)
PICTURES = (BIG, BROAD, HIGH)
PICTURE_SHARES = (0.6, 0.3, 0.1)


@dataclass(frozen=True, eq=False)
class TiledExample:
    """A picture (uint8 [H, W, 3]), one question and what it is about.

    family: one of tiled_families.py's. boxes: of each object that the answer depends on, in px.
    more: further questions about the picture, for training. glyphs, pointers: what stands where,
    and which words of the questions and answers are about it; a case read from a file has none.
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
        return worst_seam(self.boxes, self.size, grid)

    @property
    def size(self) -> tuple[int, int]:
        return self.image.shape[0], self.image.shape[1]


def plain_grid(size: tuple[int, int]) -> TileGrid:
    """Tiles without overlap over a picture of `size` px."""
    return TileGrid(size[0] // TILE, size[1] // TILE, TILE // PATCH)
