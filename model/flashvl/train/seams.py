"""Where an object lies among the tiles: on which cut, how deep, and whether one tile holds it.

A picture is scaled to the canvas that a grid's tiles span, so a cut's place in the picture depends
on the grid in force: the same word may lie on a cut of one policy and off the cuts of another.
A cut is where ownership passes from one tile to the next (TileGrid's crop rule): the tile border
without overlap, the middle of the overlap with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from flashvl_kernels.tiles import TileGrid


class Box(NamedTuple):
    """A rectangle in px of the picture, ends exclusive."""

    top: float
    left: float
    bottom: float
    right: float

    def moved(self, down: float, right: float) -> Box:
        """The same box further down and to the right."""
        return Box(self.top + down, self.left + right, self.bottom + down, self.right + right)


def around(boxes: Sequence[Box]) -> Box:
    """The smallest box that holds them all."""
    tops, lefts, bottoms, rights = zip(*boxes, strict=True)
    return Box(min(tops), min(lefts), max(bottoms), max(rights))


@dataclass(frozen=True)
class Seam:
    """How a box lies among a grid's tiles.

    depth: px of the picture that lie beyond the cut which splits the box most evenly, counted on
    its smaller side; 0 off the seams. share: the same over the box's extent along that axis, at
    most one half. whole: whether some tile sees all of the box.
    """

    depth: float
    share: float
    whole: bool

    @property
    def on(self) -> bool:
        return self.depth > 0


def cuts(tiles: int, tile: int, overlap: int, length: float) -> list[float]:
    """The cuts along an axis of `length` px that `tiles` tiles of `tile` patches span."""
    step = tile - overlap
    patches = tiles * step + overlap
    return [(k * step + (overlap + 1) // 2) * length / patches for k in range(1, tiles)]


def seam(box: Box, size: tuple[int, int], grid: TileGrid) -> Seam:
    """The place of `box` in a picture of `size` (H, W) px that is cut by `grid`."""
    axes = (
        (grid.rows, box.top, box.bottom, size[0]),
        (grid.cols, box.left, box.right, size[1]),
    )
    depth, share, whole = 0.0, 0.0, True
    for tiles, first, last, length in axes:
        for cut in cuts(tiles, grid.tile, grid.overlap, length):
            beyond = min(cut - first, last - cut)
            if beyond > 0 and beyond / (last - first) > share:
                depth, share = beyond, beyond / (last - first)
        whole = whole and _seen_whole(tiles, grid, first, last, length)
    return Seam(depth, share, whole)


def worst_seam(boxes: Sequence[Box], size: tuple[int, int], grid: TileGrid) -> Seam:
    """The seam of the box that `grid` splits most; whole only if all of them are."""
    seams = [seam(box, size, grid) for box in boxes]
    worst = max(seams, key=lambda found: found.share)
    return Seam(worst.depth, worst.share, all(found.whole for found in seams))


def _seen_whole(tiles: int, grid: TileGrid, first: float, last: float, length: float) -> bool:
    step = grid.tile - grid.overlap
    scale = length / (tiles * step + grid.overlap)
    # A box that ends on a tile's border is inside it, however the scale was rounded.
    slack = 1e-9 * length
    return any(
        k * step * scale <= first + slack and last <= (k * step + grid.tile) * scale + slack
        for k in range(tiles)
    )
