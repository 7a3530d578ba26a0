"""TileGrid: how overlapping tiles cover an image, and how their features become one canvas.

A grid of `rows` x `cols` square tiles, each `tile` patches a side, neighbours sharing `overlap`
patches. Laid out, they span `canvas_full` = n * tile - (n - 1) * overlap patches an axis; `canvas`
is what is left after a ring of `border` patches is dropped on the outside. Where two tiles meet,
`rule` says whose feature counts:

    crop    cut in the middle of the overlap, each position has one owner; of an odd overlap the
            middle patch goes to the upper (left) tile, the one that comes first in row-major order
    mean    both tiles, half each
    linear  both tiles, a tent: the weight is the distance of the patch's centre to the tile's own
            edge, over the overlap, so it passes 1/2 in the middle and never reaches 0

The rules are separable: in a corner, where four tiles meet, the weights of the two axes multiply.
This is pure geometry, with no pixel and no feature in it: Flash-VL's implicit semantic stitching
(arXiv 2505.09498) does not publish its merge rule, so every reading of it is a TileGrid.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

RULES = ("crop", "mean", "linear")


@dataclass(frozen=True)
class TileGrid:
    """A tiling of `rows` x `cols` tiles of `tile` x `tile` patches; see the module docstring.

    Lengths are in patches. Tiles and positions count row-major. Raises ValueError (TypeError for a
    field that is no integer) naming the field. The fields may be symbolic integers under
    torch.compile; the methods that return tensors need real ones.
    """

    rows: int
    cols: int
    tile: int
    overlap: int = 0
    rule: str = "crop"
    border: int = 0

    def __post_init__(self) -> None:
        for name, least in (("rows", 1), ("cols", 1), ("tile", 1), ("overlap", 0), ("border", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
                raise TypeError(
                    f"TileGrid.{name} is {value!r}: it must be an int, in "
                    f"{'tiles' if name in ('rows', 'cols') else 'patches'}"
                )
            if value < least:
                raise ValueError(f"TileGrid.{name} is {value}: it must be at least {least}")
        if self.rule not in RULES:
            raise ValueError(
                f"TileGrid.rule is {self.rule!r}: it must be one of {', '.join(RULES)}"
            )
        # Up to half the tile, no position has more than two owners an axis.
        if 2 * self.overlap > self.tile:
            raise ValueError(
                f"TileGrid.overlap is {self.overlap} with tile {self.tile}: it may be "
                f"at most half the tile; lower overlap or use bigger tiles"
            )
        # Below half the tile, every tile still owns some of the canvas.
        if 2 * self.border >= self.tile:
            raise ValueError(
                f"TileGrid.border is {self.border} with tile {self.tile}: it must be "
                f"below half the tile; lower border or use bigger tiles"
            )

    @property
    def tiles(self) -> int:
        """How many tiles there are."""
        return self.rows * self.cols

    @property
    def tile_len(self) -> int:
        """How many patches a tile has."""
        return self.tile * self.tile

    @property
    def canvas_full(self) -> tuple[int, int]:
        """Height and width that the tiles span, border ring included."""
        step = self.tile - self.overlap
        return self.rows * step + self.overlap, self.cols * step + self.overlap

    @property
    def canvas(self) -> tuple[int, int]:
        """Height and width of the stitched canvas, border ring dropped."""
        height, width = self.canvas_full
        return height - 2 * self.border, width - 2 * self.border

    @property
    def canvas_len(self) -> int:
        """How many positions the stitched canvas has."""
        height, width = self.canvas
        return height * width

    @property
    def patches_read(self) -> int:
        """How many of the tiles' patches the canvas is made of: crop leaves some unread."""
        if self.rule == "crop":
            return self.canvas_len
        rows, cols = (n * self.tile - 2 * self.border for n in (self.rows, self.cols))
        return rows * cols

    def flat(self) -> tuple[int, int, int, int, str, int]:
        """The fields in the order in which the torch.library schemas take them."""
        return self.rows, self.cols, self.tile, self.overlap, self.rule, self.border

    @classmethod
    def from_flat(cls, fields: Iterable[Any]) -> TileGrid:
        """The grid whose `flat()` is `fields`."""
        return cls(*fields)

    def tile_origin(self, index: int) -> tuple[int, int]:
        """Row and column of tile `index`'s first patch on the full canvas."""
        self._check_tile(index)
        step = self.tile - self.overlap
        return index // self.cols * step, index % self.cols * step

    def owned(self, index: int) -> tuple[int, int, int, int]:
        """Tile `index`'s own part under the crop cut: (row0, row1, col0, col1) in it, half open."""
        self._check_tile(index)
        return (
            *self._owned_span(self.rows, index // self.cols),
            *self._owned_span(self.cols, index % self.cols),
        )

    def owner(self) -> Tensor:
        """Which tile owns each position of the canvas under the crop cut: int64 [rows, cols].

        The tensor is cached: don't write to it.
        """
        return _owner(self)

    def weights(self, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """What each canvas position is made of: index int64 [P, m] and weight float64 [P, m].

        P = canvas_len; m is 1 under crop, else 2 for each axis that overlaps. `index` counts into
        the grid's tiles * tile_len patches, and within a row the upper (left) tile comes first. A
        position with fewer than m sources repeats its first index with weight 0: skip those, don't
        multiply, or an infinite feature turns into NaN. Weights of a row add up to 1. The tensors
        are cached: don't write to them.
        """
        # Fake and functional tensors of a trace must stay out of the cache, and cached real ones
        # out of the trace.
        if torch.compiler.is_compiling() or type(torch.empty(0)) is not Tensor:
            return _build_weights(self, torch.device(device))
        return _weights(self, torch.device(device))

    def _owned_span(self, tiles: int, index: int) -> tuple[int, int]:
        """The tile-local positions that the `index`-th of `tiles` tiles owns along one axis."""
        start = self.border if index == 0 else (self.overlap + 1) // 2
        stop = self.tile - (self.border if index == tiles - 1 else self.overlap // 2)
        return start, stop

    def _check_tile(self, index: int) -> None:
        if not 0 <= index < self.tiles:
            raise ValueError(
                f"tile index is {index}: this grid of {self.rows}x{self.cols} has "
                f"tiles 0 to {self.tiles - 1}"
            )


@dataclass(frozen=True)
class _Axis:
    """Sources of each canvas position along one axis, `ways` a position, flattened."""

    ways: int
    tile: tuple[int, ...]
    local: tuple[int, ...]
    weight: tuple[float, ...]


@lru_cache(maxsize=256)
def _axis(tiles: int, tile: int, overlap: int, rule: str, border: int) -> _Axis:
    step = tile - overlap
    ways = 1 if rule == "crop" or overlap == 0 or tiles == 1 else 2
    sources: list[tuple[int, int, float]] = []
    for position in range(border, tiles * step + overlap - border):
        last = min(position // step, tiles - 1)  # the last tile that covers this position
        local = position - last * step
        here = (last, local)
        if last == 0 or local >= overlap:
            sources += [(*here, 1.0)] + [(*here, 0.0)] * (ways - 1)
            continue
        before = (last - 1, local + step)
        if rule == "crop":
            sources.append((*(before if local < (overlap + 1) // 2 else here), 1.0))
        else:
            share = 0.5 if rule == "mean" else (2 * local + 1) / (2 * overlap)
            sources += [(*before, 1.0 - share), (*here, share)]
    return _Axis(ways, *zip(*sources, strict=True))


def _build_weights(grid: TileGrid, device: torch.device) -> tuple[Tensor, Tensor]:
    shape = int(grid.tile), int(grid.overlap), grid.rule, int(grid.border)
    rows, cols = _axis(int(grid.rows), *shape), _axis(int(grid.cols), *shape)

    def along(axis: _Axis, values: tuple[Any, ...], rows_axis: bool) -> Tensor:
        table = torch.tensor(
            values, device=device, dtype=torch.float64 if values is axis.weight else torch.int64
        )
        table = table.view(-1, axis.ways)
        return table[:, None, :, None] if rows_axis else table[None, :, None, :]

    tile = along(rows, rows.tile, True) * grid.cols + along(cols, cols.tile, False)
    local = along(rows, rows.local, True) * grid.tile + along(cols, cols.local, False)
    weight = along(rows, rows.weight, True) * along(cols, cols.weight, False)
    ways = rows.ways * cols.ways
    return (tile * grid.tile_len + local).reshape(-1, ways), weight.reshape(-1, ways)


# A batch of photos of every aspect ratio up to 12 tiles needs about 40 grids.
@lru_cache(maxsize=64)
def _weights(grid: TileGrid, device: torch.device) -> tuple[Tensor, Tensor]:
    # A tensor born in inference mode could not be saved for a later backward pass.
    with torch.inference_mode(False):
        return _build_weights(grid, device)


@lru_cache(maxsize=64)
def _owner(grid: TileGrid) -> Tensor:
    crop = TileGrid(grid.rows, grid.cols, grid.tile, grid.overlap, "crop", grid.border)
    return (crop.weights()[0][:, 0] // grid.tile_len).view(grid.canvas)
