"""Dense targets of tiled pictures: which glyph every half patch of every tile shows.

The encoder looks at one tile at a time, before anything is stitched, so the targets are those of
the tiles: one map serves all policies, stitched or not, and a patch that two tiles see has a target
in both. Small type puts more than one letter into a patch of 8 px, so a patch has HALVES targets,
its left and its right half. A glyph owns a half as in canvas.py: where it covers most and at least
COVERAGE of it, or has its centre there.

A glyph's order counts from the start of its text. A tile that does not see the start cannot know
it, and there the target says so (IGNORE).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from flashvl.config import ImagePolicy
from flashvl.train.canvas import COVERAGE
from flashvl.train.glyphs import Glyph
from flashvl_kernels.tiles import TileGrid

HALVES = 2
IGNORE = -100  # torch.nn.functional.cross_entropy's own


@dataclass(frozen=True)
class TileTargets:
    """int64 [T, t*t, HALVES] each, tiles and patches row-major; 0 is the background.

    glyph: 1 + the index of the glyph shown. symbol, order, colour: its classes.
    """

    glyph: np.ndarray
    symbol: np.ndarray
    order: np.ndarray
    colour: np.ndarray


def tile_targets(glyphs: Sequence[Glyph], size: tuple[int, int], grid: TileGrid) -> TileTargets:
    """The targets of a picture of `size` (H, W) px that `grid`'s tiles span."""
    shape = (grid.tiles, grid.tile_len, HALVES)
    if not glyphs:
        nothing = np.zeros(shape, np.int64)
        return TileTargets(nothing, nothing, nothing, nothing)
    boxes = np.array([glyph.box for glyph in glyphs], float)
    down = _Axis(grid.rows, grid, size[0], 1, boxes[:, 0], boxes[:, 2])
    across = _Axis(grid.cols, grid, size[1], HALVES, boxes[:, 1], boxes[:, 3])
    # [glyphs, rows, cols, tile, tile * HALVES]
    score = _outer(down.covered, across.covered) + 2.0 * _outer(down.centred, across.centred)
    owned = score.max(0) >= COVERAGE
    owner = np.where(owned, 1 + score.argmax(0), 0).reshape(shape)
    tile = np.arange(grid.tiles)[:, None, None]
    order = _table(glyph.order for glyph in glyphs)[owner]
    known = _starts_seen(glyphs, down, across).reshape(len(glyphs), grid.tiles)
    unknown = (owner > 0) & ~known[np.maximum(owner - 1, 0), tile]
    return TileTargets(
        glyph=owner,
        symbol=_table(glyph.symbol for glyph in glyphs)[owner],
        order=np.where(unknown, IGNORE, order),
        colour=_table(glyph.colour for glyph in glyphs)[owner],
    )


class _Axis:
    """Along one axis, cells of `pieces` to a patch: float [glyphs, tiles, tile * pieces].

    covered: the share of a cell that a glyph's span covers. centred: whether its middle is there.
    """

    def __init__(
        self, tiles: int, grid: TileGrid, length: int, pieces: int,
        first: np.ndarray, last: np.ndarray,
    ) -> None:  # fmt: skip
        step = grid.tile - grid.overlap
        scale = length / (tiles * step + grid.overlap)  # px of the picture a patch
        cells = np.arange(grid.tile * pieces) / pieces
        start = (np.arange(tiles)[:, None] * step + cells) * scale
        stop = start + scale / pieces
        low, high = (side[:, None, None] for side in (first, last))
        inside = np.minimum(high, stop) - np.maximum(low, start)
        middle = (low + high) / 2
        self.covered = np.clip(inside, 0, None) / (stop - start)
        self.centred = ((start <= middle) & (middle < stop)).astype(float)


def _outer(down: np.ndarray, across: np.ndarray) -> np.ndarray:
    return down[:, :, None, :, None] * across[:, None, :, None, :]


def _table(classes: Iterable[int]) -> np.ndarray:
    return np.array([0, *classes], np.int64)


def _starts_seen(glyphs: Sequence[Glyph], down: _Axis, across: _Axis) -> np.ndarray:
    """Whether a tile sees the middles of all glyphs before this one in its text:
    bool [glyphs, rows, cols]."""
    seen = (down.centred.any(2)[:, :, None]) & (across.centred.any(2)[:, None, :])
    known = np.ones_like(seen)
    for index in range(1, len(glyphs)):
        if glyphs[index].group == glyphs[index - 1].group:
            known[index] = known[index - 1] & seen[index - 1]
    return known


def token_shares(glyph: np.ndarray, count: int, policy: ImagePolicy, grid: TileGrid) -> np.ndarray:
    """The share of each token of the picture that each of `count` glyphs covers: [count, tokens].

    glyph: as in TileTargets. What is stitched takes a patch from the tile that owns it; the other
    rules blend features but not what they show.
    """
    wanted = np.arange(1, count + 1)[:, None, None, None]
    each = (glyph == wanted).mean(3, dtype=np.float32)  # [count, T, t*t]
    height, width = policy.units(grid)
    if policy.stitch:
        crop = TileGrid(grid.rows, grid.cols, grid.tile, grid.overlap, "crop", grid.border)
        each = each.reshape(count, -1)[:, crop.weights()[0][:, 0].numpy()]
    rows, cols = policy.compression_for(grid).grid(height, width)
    each = each.reshape(count, -1, height, width)
    return (_bins(height, rows) @ each @ _bins(width, cols).T).reshape(count, -1)


@lru_cache(maxsize=64)
def _bins(side: int, bins: int) -> np.ndarray:
    """The mean over each of torch.nn.AdaptiveAvgPool2d's bins along an axis: [bins, side]. In
    NumPy, for PyTorch's own waits for every thread of the machine that trains."""
    mean = np.zeros((bins, side), np.float32)
    for index in range(bins):
        first, last = index * side // bins, -(-(index + 1) * side // bins)
        mean[index, first:last] = 1 / (last - first)
    return mean
