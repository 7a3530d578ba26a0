"""Launch plans of image_to_patches (csrc/cuda/image_to_patches.cuh): a pass an axis."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from flashvl_kernels.cuda.device import KIB, Device
from flashvl_kernels.cuda.launch import (
    TYPES,
    WARP,
    Instance,
    Launch,
    Prepared,
    address,
    ceil_div,
    power_of_two,
)

THREADS = 256
"""kImageThreads."""
CHANNELS = 3
ALIGNMENT = 16
FRACTION = 22
SHARED_WANTED = 40 * KIB
"""Staged bytes of a block, so that two to five share a multiprocessor."""
SHARED_LIMIT = 96 * KIB
"""The least that a block may have on the devices the kernels are compiled for, less 3 KiB."""
TOKENS_WIDTH = 64
"""Pixels that the tokens of a block are wide, at most, where several fit."""
NONE, ALONG, ACROSS, PLANES = range(4)
"""Which bytes are neighbours: Runs."""


@dataclass(frozen=True)
class TilePlan:
    """What a block stages at a time: outputs and lines, the positions those need, the bytes
    between two lines."""

    outputs: int
    lines: int
    positions: int
    pitch: int

    @property
    def shared_bytes(self) -> int:
        """Of the staged lines, up to the next multiple of 16."""
        return ceil_div(CHANNELS * self.lines * self.pitch, ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True, eq=False)
class _Filter:
    """Of each output the first position, a multiple of 4, int32, and its weights, int32
    [outputs, 4 * groups], on the device; `starts` are the first positions on the host."""

    first: Tensor
    weight: Tensor
    starts: Tensor

    @property
    def taps(self) -> int:
        return self.weight.shape[1]

    def positions(self, outputs: int) -> int:
        """That any `outputs` neighbours need, from a multiple of 16 on."""
        reach = min(outputs, len(self.starts)) - 1
        low = self.starts[: len(self.starts) - reach] // ALIGNMENT * ALIGNMENT
        return int((self.starts[reach:] - low).max()) + self.taps


# One entry holds out * 4 * scale int32: 64 KiB from 4000 to 1792 pixels.
@lru_cache(maxsize=64)
def _filter(size: int, out: int, device: torch.device) -> _Filter:
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
    return _Filter(starts.to(device, torch.int32), aligned.to(device), starts)


def tile_plan(
    filter: _Filter, outputs: int, lines: int, wanted: int, limit: int
) -> TilePlan | None:
    """At most `outputs` by `lines` at a time: all of them if `wanted` bytes hold those; else as
    many lines as possible, then outputs. None where one of each takes more than `limit` bytes."""
    while True:
        positions = filter.positions(outputs)
        # An odd number of words: lanes are lines, and each has a bank of its own.
        found = TilePlan(outputs, lines, positions, (positions // 4 | 1) * 4)
        if found.shared_bytes <= wanted:
            return found
        if outputs == 1 and lines == 1:
            return found if found.shared_bytes <= limit else None
        # A warp of lines shares its weights; below that, lines make way too.
        if outputs > 8 or lines == 1 or (outputs > 1 and lines <= WARP):
            outputs = ceil_div(outputs, 2)
        else:
            lines = ceil_div(lines, 2)


def resize_plan(filter: _Filter, outputs: int, lines: int) -> TilePlan | None:
    """The first pass: a warp of lines, whose result is a sector of 32 bytes."""
    lines = min(power_of_two(lines), WARP)
    return tile_plan(filter, min(outputs, 64), lines, SHARED_WANTED, SHARED_LIMIT)


@dataclass(frozen=True)
class PatchesPlan:
    """tokens: of a block. staged: at a time. out_bytes: of the block's result."""

    tokens: int
    staged: TilePlan
    out_bytes: int


def patches_plan(
    filter: _Filter, tile: int, patch: int, down: bool, itemsize: int
) -> PatchesPlan | None:
    """The second pass: neighbouring tokens of a tile, whose patches are one run in memory."""
    tokens = max(1, min(TOKENS_WIDTH // patch, tile))
    width = tokens * patch
    out = (tokens * CHANNELS * patch * patch * itemsize // ALIGNMENT + 2) * ALIGNMENT
    lines, outputs = (width, patch) if down else (patch, width)
    limit = SHARED_LIMIT - out
    staged = tile_plan(filter, outputs, lines, min(SHARED_WANTED, limit), limit)
    return None if staged is None else PatchesPlan(tokens, staged, out)


class Pixels(ctypes.Structure):
    """Pixels of csrc/cuda/image_filter.cuh."""

    _fields_ = (
        ("bytes", ctypes.c_void_p),
        *(
            (name, ctypes.c_int64)
            for name in ("position_stride", "line_stride", "channel_stride", "span")
        ),
        *((name, ctypes.c_int) for name in ("positions", "lines", "runs")),
    )


class Filter(ctypes.Structure):
    """Filter of csrc/cuda/image_filter.cuh."""

    _fields_ = (
        ("first", ctypes.c_void_p),
        ("weight", ctypes.c_void_p),
        ("groups", ctypes.c_int),
    )


_TILE = ("outputs_at_once", "lines_at_once", "positions", "pitch")


class ResizeArgs(ctypes.Structure):
    """ResizeArgs of csrc/cuda/image_to_patches.cuh."""

    _fields_ = (
        ("source", Pixels),
        ("filter", Filter),
        ("planes", ctypes.c_void_p),
        ("plane_pitch", ctypes.c_int64),
        *((name, ctypes.c_int) for name in ("outputs", *_TILE)),
    )


class PatchesArgs(ctypes.Structure):
    """PatchesArgs<T> of csrc/cuda/image_to_patches.cuh."""

    _fields_ = (
        ("source", Pixels),
        ("filter", Filter),
        ("patches", ctypes.c_void_p),
        *(
            (name, ctypes.c_int)
            for name in ("cols", "tile", "step", "patch", "down", "tokens", *_TILE, "out_offset")
        ),
        ("mean", ctypes.c_float * 3),
        ("std", ctypes.c_float * 3),
    )


def instances() -> list[Instance]:
    """The kernels to build."""
    patches = [Instance(f"patches_kernel<{t}>", f"PatchesArgs<{t}>") for t in TYPES.values()]
    return [Instance(f"resize_kernel<{CHANNELS}>", "ResizeArgs"), *patches]


def _pixels(image: Tensor, axis: int) -> Pixels:
    """uint8 [H, W, 3] as a pass along `axis` (0: down) sees it."""
    strides = image.stride()
    along, across, channel = strides[axis], strides[1 - axis], strides[2]
    runs = NONE
    if channel == 1 and along == CHANNELS:
        runs = ALONG
    elif channel == 1 and across == CHANNELS:
        runs = ACROSS
    elif along == 1:
        runs = PLANES
    pairs = zip(image.shape, strides, strict=True)
    span = 1 + sum((size - 1) * stride for size, stride in pairs)
    return Pixels(
        address(image), along, across, channel, span, image.shape[axis], image.shape[1 - axis], runs
    )


def _filter_of(filter: _Filter) -> Filter:
    return Filter(address(filter.first), address(filter.weight), filter.taps // 4)


def _tile(plan: TilePlan) -> tuple[int, int, int, int]:
    return plan.outputs, plan.lines, plan.positions, plan.pitch


@dataclass(frozen=True)
class _Passes:
    """The axis of each pass; the first one is None where that axis keeps its size."""

    first: int | None
    last: int
    size: tuple[int, int]


def _passes(image: Tensor, canvas: tuple[int, int], patch: int) -> _Passes:
    """The order of the passes is Pillow's; an axis that keeps its size must not come last."""
    from flashvl_kernels.ops.image_to_patches import _rows_first

    height, width = image.shape[:2]
    size = canvas[0] * patch, canvas[1] * patch
    last = 1 if _rows_first(height, width, *size) else 0
    if image.shape[last] == size[last]:
        last = 1 - last
    first = 1 - last
    return _Passes(None if image.shape[first] == size[first] else first, last, size)


def why_not(image: Tensor, *fields: Any) -> str | None:
    """The arithmetic is fp32, places are 32 bits, and an output's inputs fit in shared memory."""
    from flashvl_kernels.ops.image_to_patches import _parse

    grid, _, _, patch, dtype = _parse(fields)
    if dtype == torch.float64:
        return "kernels compute in float32; dtype=torch.float64 runs through the reference"
    passes = _passes(image, grid.canvas_full, patch)
    plans: list[object] = []
    for axis in (passes.first, passes.last):
        if axis is None:
            continue
        filter = _filter(image.shape[axis], passes.size[axis], image.device)
        if axis == passes.last:
            plans.append(patches_plan(filter, grid.tile, patch, axis == 0, dtype.itemsize))
        else:
            plans.append(resize_plan(filter, passes.size[axis], image.shape[1 - axis]))
    if None in plans:
        return (
            f"patches of {patch} pixels from an image of {image.shape[0]}x{image.shape[1]} need "
            f"more shared memory than a block has; reduce the image first"
        )
    return None


def prepare(flat: tuple[Any, ...], device: Device) -> Prepared:
    """A call on schema arguments."""
    from flashvl_kernels.ops.image_to_patches import _parse

    image, *rest = flat
    grid, mean, std, patch, dtype = _parse(tuple(rest))
    patches = image.new_empty((grid.tiles, grid.tile_len, 3 * patch * patch), dtype=dtype)
    passes = _passes(image, grid.canvas_full, patch)
    tensors, launches = {"image": image, "patches": patches}, []
    if passes.first is not None:
        outputs, lines = passes.size[passes.first], image.shape[passes.last]
        filter = _filter(image.shape[passes.first], outputs, image.device)
        plan = resize_plan(filter, outputs, lines)
        assert plan is not None
        pitch = ceil_div(lines, ALIGNMENT) * ALIGNMENT
        planes = image.new_empty(CHANNELS, outputs, pitch)
        arguments = ResizeArgs(
            _pixels(image, passes.first), _filter_of(filter), address(planes), pitch, outputs,
            *_tile(plan),
        )  # fmt: skip
        blocks = ceil_div(outputs, plan.outputs) * ceil_div(lines, plan.lines)
        launches.append(
            Launch(instances()[0], (blocks, 1, 1), (THREADS, 1, 1), arguments, plan.shared_bytes)
        )
        tensors |= {"planes": planes, "first": filter.first, "weight": filter.weight}
        image = planes[:, :, :lines].permute((2, 1, 0) if passes.first == 1 else (1, 2, 0))
    last = passes.last
    filter = _filter(image.shape[last], passes.size[last], image.device)
    tensors |= {"last_first": filter.first, "last_weight": filter.weight}
    chosen = patches_plan(filter, grid.tile, patch, last == 0, dtype.itemsize)
    assert chosen is not None
    floats = ctypes.c_float * 3
    last_arguments = PatchesArgs(
        _pixels(image, last), _filter_of(filter), address(patches),
        grid.cols, grid.tile, grid.tile - grid.overlap, patch, last == 0, chosen.tokens,
        *_tile(chosen.staged), chosen.staged.shared_bytes, floats(*mean), floats(*std),
    )  # fmt: skip
    blocks = grid.tiles * grid.tile * ceil_div(grid.tile, chosen.tokens)
    kernel = Instance(f"patches_kernel<{TYPES[dtype]}>", f"PatchesArgs<{TYPES[dtype]}>")
    shared = chosen.staged.shared_bytes + chosen.out_bytes
    launches.append(Launch(kernel, (blocks, 1, 1), (THREADS, 1, 1), last_arguments, shared))
    return Prepared((patches,), tuple(launches), tensors, frozenset(("patches", "planes")))
