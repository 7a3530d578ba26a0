"""Shapes of the blocks of image_to_patches: what they stage and make at a time."""

from __future__ import annotations

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
LINES_AT_ONCE = {True: (WARP, 16, 8), False: (2 * WARP, WARP, 16, 8)}
"""Of the first of two passes in one launch, by whether it is along the rows of pixels; if not,
lines are neighbours in memory, and many of them are long runs of bytes."""


def _whole(size: int) -> int:
    """Up to the next multiple of 16 bytes."""
    return ceil_div(size, ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class TilePlan:
    """What a block stages at a time: outputs and lines, the positions those need, the bytes
    between two lines, and the weights of an output."""

    outputs: int
    lines: int
    positions: int
    taps: int

    @property
    def pitch(self) -> int:
        """An odd number of words: lanes are lines, and each has a bank of its own."""
        return (self.positions // 4 | 1) * 4

    @property
    def staged_bytes(self) -> int:
        """Of the lines."""
        return _whole(CHANNELS * self.lines * self.pitch)

    @property
    def taps_bytes(self) -> int:
        """Of the outputs' weights and first positions."""
        return _whole(self.outputs * (self.taps + 1) * 4)

    @property
    def shared_bytes(self) -> int:
        """The lines, and the weights behind them."""
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

    def tile(self, outputs: int, lines: int) -> TilePlan:
        """Of any `outputs` neighbours at a time, in `lines` lines."""
        reach = min(outputs, len(self.starts)) - 1
        low = self.starts[: len(self.starts) - reach]
        positions = int((self.starts[reach:] - low).max()) + self.taps
        return TilePlan(outputs, lines, positions, self.taps)


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
    filter: AxisFilter, outputs: int, lines: int, wanted: int, limit: int
) -> TilePlan | None:
    """At most `outputs` by `lines` at a time: all of them if `wanted` bytes hold those; else as
    many lines as possible, then outputs. None where one of each takes more than `limit` bytes."""
    while True:
        found = filter.tile(outputs, lines)
        if found.shared_bytes <= wanted:
            return found
        if outputs == 1 and lines == 1:
            return found if found.shared_bytes <= limit else None
        # A warp of lines shares its weights; below that, lines make way too.
        if outputs > 8 or lines == 1 or (outputs > 1 and lines <= WARP):
            outputs = ceil_div(outputs, 2)
        else:
            lines = ceil_div(lines, 2)


def resize_plan(filter: AxisFilter, outputs: int, lines: int) -> TilePlan | None:
    """The first pass: a warp of lines, whose result is a sector of 32 bytes."""
    lines = min(power_of_two(lines), WARP)
    return tile_plan(filter, min(outputs, 64), lines, SHARED_WANTED, SHARED_LIMIT)


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
    filter: AxisFilter, tile: int, patch: int, down: bool, itemsize: int
) -> PatchesPlan | None:
    """Neighbouring tokens of a tile, whose patches are one run in memory."""
    tokens = max(1, min(TOKENS_WIDTH // patch, tile))
    width, out = tokens * patch, _out_bytes(tokens, 1, patch, itemsize)
    lines, outputs = (width, patch) if down else (patch, width)
    limit = SHARED_LIMIT - out
    staged = tile_plan(filter, outputs, lines, min(SHARED_WANTED, limit), limit)
    return None if staged is None else PatchesPlan(tokens, staged, out)


@dataclass(frozen=True)
class ImagePlan:
    """Both passes in one launch. tokens, rows: of a block; first, last: of its passes, the first
    some lines at a time; out_bytes: of its result, which takes the place of the first one's lines.
    """

    tokens: int
    rows: int
    first: TilePlan
    last: TilePlan
    out_bytes: int

    @property
    def offsets(self) -> tuple[int, int, int]:
        """Of what lies between the passes, and of the weights of the first and the last."""
        between = max(self.first.staged_bytes, self.out_bytes)
        first = between + self.last.staged_bytes
        return between, first, first + self.first.taps_bytes

    @property
    def shared_bytes(self) -> int:
        """Of a block."""
        return self.offsets[2] + self.last.taps_bytes

    @property
    def bytes_an_output(self) -> float:
        """Of the source, staged for each pixel: the reduction, and what neighbours share."""
        outputs = self.first.outputs * self.last.outputs
        return self.first.positions * self.last.positions / outputs


def _halves(most: int) -> list[int]:
    found = [most]
    while found[-1] > 1:
        found.append(ceil_div(found[-1], 2))
    return found


@lru_cache(maxsize=64)
def image_plan(
    first: AxisFilter,
    last: AxisFilter,
    tile: int,
    tiles: int,
    patch: int,
    down: bool,
    itemsize: int,
    multiprocessors: int,
) -> ImagePlan | None:
    """The shape of a block that leaves the fewest multiprocessors idle, then reads the fewest bytes
    again that its neighbours read too; None where not even a token fits into SHARED_WANTED."""
    best, least = None, (multiprocessors, 0.0)
    sides = _halves(max(1, min(TOKENS_WIDTH // patch, tile)))
    for tokens in sides:
        for rows in sides:
            across, along = (tokens, rows) if down else (rows, tokens)
            last_tile = last.tile(along * patch, across * patch)
            out = _out_bytes(tokens, rows, patch, itemsize)
            blocks = tiles * ceil_div(tile, tokens) * ceil_div(tile, rows)
            for lines in LINES_AT_ONCE[down]:
                found = ImagePlan(tokens, rows, first.tile(across * patch, lines), last_tile, out)
                if found.shared_bytes <= SHARED_WANTED:
                    score = max(0, multiprocessors - blocks), found.bytes_an_output
                    if best is None or score < least:
                        best, least = found, score
                    break
    return best
