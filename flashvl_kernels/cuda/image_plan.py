"""Shapes of the blocks of image_to_patches: what they stage and make at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from flashvl_kernels.cuda.device import KIB
from flashvl_kernels.cuda.launch import WARP, ceil_div, power_of_two

CHANNELS = 3
ALIGNMENT = 16
FRACTION = 22
SHARED_WANTED = 40 * KIB
"""Of a block, so that two to five share a multiprocessor."""
SHARED_LIMIT = 96 * KIB
"""The least that a block may have on the devices the kernels are compiled for, less 3 KiB."""
TOKENS_WIDTH = 64
"""Pixels that the tokens of a block are wide, at most, where several fit."""
ROWS_AT_ONCE = (WARP, 16, 8)
"""Of the source, in the first of two passes of one launch, if it is along them."""
SECTOR = 32
THREADS = 256
"""kImageThreads."""


def _whole(size: int) -> int:
    """Up to the next multiple of 16 bytes."""
    return ceil_div(size, ALIGNMENT) * ALIGNMENT


def _unit(rows: int) -> int:
    """Of 32 lanes, those along rows: as many as leave an eighth of them idle at most."""
    return next((n for n in (WARP, 16) if ceil_div(rows, n) * n * 7 <= rows * 8), 8)


def _pitch(row_bytes: int, unit: int) -> int:
    """Bytes between rows that as many lanes go along, each on a bank of its own and with as many
    free between two as there are others: an odd number times 32 / unit words."""
    spread = WARP // unit
    return (ceil_div(row_bytes // 4, spread) | 1) * spread * 4


@dataclass(frozen=True)
class TilePlan:
    """What a block stages at a time: outputs and lines, the positions those need, and the weights
    of an output. down: positions are rows of the source, else lines are."""

    outputs: int
    lines: int
    positions: int
    taps: int
    down: bool

    @property
    def rows(self) -> int:
        """Of the source."""
        return self.positions if self.down else self.lines

    @property
    def row_bytes(self) -> int:
        """Of pixels, in whole fours."""
        pixels = self.lines if self.down else self.positions
        return CHANNELS * ceil_div(pixels, 4) * 4

    @property
    def unit(self) -> int:
        """Of a warp's lanes, those along rows."""
        return WARP if self.down else _unit(self.lines)

    @property
    def pitch(self) -> int:
        """Bytes between rows."""
        return _pitch(self.row_bytes, self.unit)

    @property
    def staged_bytes(self) -> int:
        """Of the rows."""
        return _whole(self.rows * self.pitch)

    @property
    def taps_bytes(self) -> int:
        """Of the outputs' weights and first positions."""
        return _whole(self.outputs * (self.taps + 1) * 4)

    @property
    def shared_bytes(self) -> int:
        """The rows, and the weights behind them."""
        return self.staged_bytes + self.taps_bytes


@dataclass(frozen=True, eq=False)
class AxisFilter:
    """Of each output the first position, a multiple of 4, int32, and its weights, int32
    [outputs, 4 * groups], on the device; `starts` are the first positions on the host."""

    first: Tensor
    weight: Tensor
    starts: Tensor

    @property
    def taps(self) -> int:
        return self.weight.shape[1]

    def tile(self, outputs: int, lines: int, down: bool) -> TilePlan:
        """Of any `outputs` neighbours at a time, in `lines` lines."""
        reach = min(outputs, len(self.starts)) - 1
        low = self.starts[: len(self.starts) - reach]
        positions = int((self.starts[reach:] - low).max()) + self.taps
        return TilePlan(outputs, lines, positions, self.taps, down)


# One entry holds out * 4 * scale int32: 64 KiB from 4000 to 1792 pixels.
@lru_cache(maxsize=64)
def axis_filter(size: int, out: int, device: torch.device) -> AxisFilter:
    """The filter of one axis; of one tap where its size is kept."""
    from flashvl_kernels.ops.image_to_patches import _filter_weights

    if size == out:
        first, weight = torch.arange(out), torch.full((out, 1), 1 << FRACTION)
    else:
        first, weight = _filter_weights(size, out)
    lead = first % 4
    taps = ceil_div(int(lead.max()) + weight.shape[1], 4) * 4
    aligned = torch.zeros(out, taps, dtype=torch.int32)
    places = lead[:, None] + torch.arange(weight.shape[1])
    aligned.scatter_(1, places, weight.to(torch.int32))
    starts = first - lead
    return AxisFilter(starts.to(device, torch.int32), aligned.to(device), starts)


def tile_plan(
    filter: AxisFilter, outputs: int, lines: int, down: bool, wanted: int, limit: int
) -> TilePlan | None:
    """At most `outputs` by `lines` at a time: all of them if `wanted` bytes hold those; else as
    many lines as possible, then outputs. None where one of each takes more than `limit` bytes."""
    while True:
        found = filter.tile(outputs, lines, down)
        if found.shared_bytes <= wanted:
            return found
        if outputs == 1 and lines == 1:
            return found if found.shared_bytes <= limit else None
        # A warp of lines shares its weights; below that, lines make way too.
        if outputs > 8 or lines == 1 or (outputs > 1 and lines <= WARP):
            outputs = ceil_div(outputs, 2)
        else:
            lines = ceil_div(lines, 2)


@dataclass(frozen=True)
class ResizePlan:
    """The first pass by itself: what is staged at a time, and the pixels that become of it."""

    staged: TilePlan

    @property
    def result_pitch(self) -> int:
        """Bytes between rows of the result."""
        return CHANNELS * (self.staged.lines if self.staged.down else self.staged.outputs)

    @property
    def offsets(self) -> tuple[int, int]:
        """Of the result and of the weights in shared memory."""
        rows = self.staged.outputs if self.staged.down else self.staged.lines
        result = self.staged.staged_bytes
        return result, result + _whole(rows * self.result_pitch)

    @property
    def shared_bytes(self) -> int:
        """Of a block."""
        return self.offsets[1] + self.staged.taps_bytes


def resize_plan(filter: AxisFilter, outputs: int, lines: int, down: bool) -> ResizePlan | None:
    """The first pass by itself."""
    outputs, lines = min(outputs, WARP), min(power_of_two(lines), WARP)
    room = CHANNELS * outputs * lines + ALIGNMENT
    limits = SHARED_WANTED - room, SHARED_LIMIT - room
    staged = tile_plan(filter, outputs, lines, down, *limits)
    return None if staged is None else ResizePlan(staged)


@dataclass(frozen=True)
class PatchesPlan:
    """The last pass by itself. tokens: of a block; staged: at a time; out_bytes: of its result."""

    tokens: int
    staged: TilePlan
    out_bytes: int


def _out_bytes(tokens: int, rows: int, patch: int, itemsize: int) -> int:
    """Of a block's result: rows of tokens, each with room to be as far from a multiple of 16 bytes
    as in memory."""
    return rows * (tokens * CHANNELS * patch * patch * itemsize // ALIGNMENT + 2) * ALIGNMENT


def patches_plan(
    filter: AxisFilter, tile: int, patch: int, columns: bool, down: bool, itemsize: int
) -> PatchesPlan | None:
    """Neighbouring tokens of a tile, whose patches are one run in memory. columns: the pass goes
    down the result's columns; down: down the source's."""
    tokens = max(1, min(TOKENS_WIDTH // patch, tile))
    width, out = tokens * patch, _out_bytes(tokens, 1, patch, itemsize)
    lines, outputs = (width, patch) if columns else (patch, width)
    limit = SHARED_LIMIT - out
    staged = tile_plan(filter, outputs, lines, down, min(SHARED_WANTED, limit), limit)
    return None if staged is None else PatchesPlan(tokens, staged, out)


@dataclass(frozen=True)
class ImagePlan:
    """Both passes in one launch. tokens, rows: of a block; first: what is staged at a time; reach:
    the rows and bytes of a row of the source that it needs; last: what lies between the passes;
    out_bytes: of its result, which takes the place of what was staged.
    """

    tokens: int
    rows: int
    first: TilePlan
    reach: tuple[int, int]
    first_taps_bytes: int
    last: TilePlan
    out_bytes: int

    @property
    def between_pitch(self) -> int:
        """Bytes between rows of what lies between the passes. A first one along rows writes it with
        lanes along them."""
        written = WARP if self.first.down else min(power_of_two(self.first.lines), WARP)
        return _pitch(self.last.row_bytes, min(written, self.last.unit))

    @property
    def offsets(self) -> tuple[int, int, int]:
        """Of what lies between the passes, and of the weights of the first and the last."""
        between = max(self.first.staged_bytes, self.out_bytes)
        first = between + _whole(self.last.rows * self.between_pitch)
        return between, first, first + self.first_taps_bytes

    @property
    def shared_bytes(self) -> int:
        """Of a block."""
        return self.offsets[2] + self.last.taps_bytes

    @property
    def idle_threads(self) -> int:
        """That have no word of the first pass."""
        words = self.first.row_bytes // 4 if self.first.down else self.first.lines
        return max(0, THREADS - self.first.outputs * words)

    @property
    def bytes_read(self) -> int:
        """Of the source, with what a run's ends have of sectors that are not whole."""
        rows, run = self.reach
        return rows * (run + SECTOR - 1)


def _halves(most: int) -> list[int]:
    found = [most]
    while found[-1] > 1:
        found.append(ceil_div(found[-1], 2))
    return found


def _even(rows: int, most: int) -> int:
    """A multiple of 8 rows, up to `most`, of which as many take them all as of `most`."""
    return ceil_div(ceil_div(rows, ceil_div(rows, most)), 8) * 8


def _shares(most: int) -> list[int]:
    """The most, a half, a third ... of it."""
    return list(dict.fromkeys(ceil_div(most, parts) for parts in range(1, most + 1)))


def _block(
    first: AxisFilter, last: AxisFilter, outputs: tuple[int, int], down: bool
) -> Iterator[tuple[TilePlan, tuple[int, int], int, TilePlan]]:
    """Of a block with so many outputs of the first pass and of the last: fields of ImagePlan, the
    most staged at a time first."""
    between = last.tile(outputs[1], outputs[0], down)
    whole = first.tile(outputs[0], between.positions, not down)
    if down:
        reach = between.rows, whole.row_bytes
        parts = [first.tile(outputs[0], _even(reach[0], n), False) for n in ROWS_AT_ONCE]
    else:
        reach = whole.rows, between.row_bytes
        parts = [first.tile(some, between.positions, True) for some in _shares(outputs[0])]
    for part in parts:
        yield part, reach, whole.taps_bytes, between


@lru_cache(maxsize=64)
def image_plan(
    first: AxisFilter,
    last: AxisFilter,
    tile: int,
    tiles: int,
    patch: int,
    columns_last: bool,
    down: bool,
    itemsize: int,
    multiprocessors: int,
) -> ImagePlan | None:
    """The shape of a block that leaves the fewest multiprocessors idle, then the fewest threads,
    then reads the fewest bytes again that its neighbours read too; None where not even a token fits
    into SHARED_WANTED.

    columns_last: the last pass goes down the result's columns; down: down the source's."""
    best, least = None, (multiprocessors, 0, 0.0)
    sides = _halves(max(1, min(TOKENS_WIDTH // patch, tile)))
    for tokens in sides:
        for rows in sides:
            outputs = (tokens, rows) if columns_last else (rows, tokens)
            pixels = outputs[0] * patch, outputs[1] * patch
            out = _out_bytes(tokens, rows, patch, itemsize)
            blocks = tiles * ceil_div(tile, tokens) * ceil_div(tile, rows)
            for fields in _block(first, last, pixels, down):
                found = ImagePlan(tokens, rows, *fields, out)
                if found.shared_bytes <= SHARED_WANTED:
                    idle = max(0, multiprocessors - blocks)
                    score = idle, found.idle_threads, found.bytes_read / (tokens * rows)
                    if best is None or score < least:
                        best, least = found, score
                    break
    return best
