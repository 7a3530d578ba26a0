"""A uint8 image to GEMM-ready rows of normalised patches, in two passes at most.

Pillow's antialiased bicubic is one filter an axis (ops/image_to_patches.py), each rounded to uint8;
the weights are its 22-bit fixed point, and sums of them times bytes fit into 32 bits, so that the
result is Pillow's, bit for bit. The first pass leaves planes of bytes. The second one filters along
the other axis what it writes: it finds the pixel of each output element, so that overlapping tiles
are cut, normalised and laid out without a canvas in memory. An axis that keeps its size has no
pass, or a filter of one tap. Bound by the loads of the taps, 4 times the reduction for each value
of a pass, which the L1 serves: neighbours share most of theirs.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from flashvl_kernels.ops.image_to_patches import _filter_weights, _parse, _rows_first
from flashvl_kernels.triton import launch
from flashvl_kernels.triton.dispatch import queue
from flashvl_kernels.triton.expect import Expect

EXPECT = {"resize_kernel": Expect(), "patches_kernel": Expect()}
BIT_EQUAL = 1.0
"""Integers, then the reference's three fp32 operations and its one rounding."""

ROWS, COLUMNS = tl.constexpr(0), tl.constexpr(1)
FRACTION = tl.constexpr(22)
HALF = tl.constexpr(1 << 21)
BLOCK = 1024
"""Outputs of a program: 8 for each of 128 threads, one 16-byte store of bf16."""


@triton.jit
def filtered(
    source, first, weight, channel, y, x, inside, taps, size,
    row_stride, column_stride, channel_stride, AXIS: tl.constexpr,
):  # type: ignore[no-untyped-def] # fmt: skip
    """Grey levels 0..255, int32, at row y and column x of the output of a pass along AXIS.

    source: uint8, `size` long along AXIS. first: the first input of each output, and weight
    [outputs, taps], the fixed-point weights from there on; those past the end are zero.
    """
    out = y if AXIS == ROWS else x
    start = tl.load(first + out, inside, 0)
    if AXIS == ROWS:
        line = source + channel * channel_stride + x * column_stride
        step = row_stride
    else:
        line = source + channel * channel_stride + y * row_stride
        step = column_stride
    total = tl.full(start.shape, HALF, tl.int32)  # rounds half up
    for tap in range(0, taps):
        place = start + tap
        grey = tl.load(line + place.to(tl.int64) * step, inside & (place < size), 0)
        total += grey.to(tl.int32) * tl.load(weight + out * taps + tap, inside, 0)
    return tl.minimum(tl.maximum(total >> FRACTION, 0), 255)


@triton.jit
def resize_kernel(
    source, first, weight, planes,
    count, height, width, taps, size, row_stride, column_stride, channel_stride,
    AXIS: tl.constexpr, BLOCK: tl.constexpr,
):  # type: ignore[no-untyped-def] # fmt: skip
    """planes uint8 [3, height, width], `count` elements: the image, resized along AXIS."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    x, y, channel = at % width, at // width % height, at // width // height
    grey = filtered(
        source, first, weight, channel, y, x, inside, taps, size,
        row_stride, column_stride, channel_stride, AXIS,
    )  # fmt: skip
    tl.store(planes + at, grey.to(tl.uint8), inside)


@triton.jit
def of_channel(channel, red, green, blue):  # type: ignore[no-untyped-def]
    """The one of three numbers that belongs to each channel."""
    return tl.where(channel == 0, red, tl.where(channel == 1, green, blue))


@triton.jit
def patches_kernel(
    source, first, weight, patches,
    count, cols, tile, step, patch, taps, size, row_stride, column_stride, channel_stride,
    mean_red, mean_green, mean_blue, std_red, std_green, std_blue,
    AXIS: tl.constexpr, BLOCK: tl.constexpr,
):  # type: ignore[no-untyped-def] # fmt: skip
    """patches [tiles, tile * tile, 3 * patch * patch], `count` elements: source resized along AXIS,
    cut into tiles `step` patches apart, `cols` of them in a row, and normalised."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    in_x, in_y = at % patch, at // patch % patch
    channel = at // (patch * patch) % 3
    token = at // (3 * patch * patch)
    number = token // (tile * tile)
    y = (number // cols * step + token // tile % tile) * patch + in_y
    x = (number % cols * step + token % tile) * patch + in_x
    grey = filtered(
        source, first, weight, channel, y, x, inside, taps, size,
        row_stride, column_stride, channel_stride, AXIS,
    )  # fmt: skip
    shift = of_channel(channel, mean_red, mean_green, mean_blue)
    scale = of_channel(channel, std_red, std_green, std_blue)
    share = tl.div_rn(grey.to(tl.float32), tl.full(grey.shape, 255.0, tl.float32))
    value = tl.div_rn(share - shift, scale)
    tl.store(patches + at, value.to(patches.dtype.element_ty), inside)


# One entry holds out * 4 * scale int32: 64 KiB from 4000 to 1792 pixels.
@lru_cache(maxsize=64)
def _filter(size: int, out: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """First input of each output, int32 [out], and its fixed-point weights, int32 [out, taps]."""
    if size == out:
        weight = torch.full((out, 1), 1 << FRACTION.value, dtype=torch.int32)
        return torch.arange(out, dtype=torch.int32).to(device), weight.to(device)
    first, fixed = _filter_weights(size, out)
    return first.to(device, torch.int32), fixed.to(torch.int32).to(device)


def why_not(image: Tensor, *fields: Any) -> str | None:
    """The arithmetic is fp32."""
    if fields[-1] == torch.float64:
        return "kernels compute in float32; dtype=torch.float64 runs through the reference"
    return None


def _resize(image: Tensor, axis: int, out: int) -> Tensor:
    """uint8 [H, W, 3], resized along `axis`; planes in memory."""
    shape = [image.shape[0], image.shape[1]]
    size, shape[axis] = shape[axis], out
    planes = image.new_empty(3, *shape)
    first, weight = _filter(size, out, image.device)
    queue(
        resize_kernel, (launch.ceil_div(planes.numel(), BLOCK),),
        image, first, weight, planes,
        planes.numel(), *shape, weight.shape[1], size, *image.stride(),
        AXIS=axis, BLOCK=BLOCK, num_warps=BLOCK // 8 // launch.describe(image.device).warp,
    )  # fmt: skip
    return planes.permute(1, 2, 0)


def run(image: Tensor, *fields: Any) -> Tensor:
    """Patches [T, tile * tile, 3 * patch * patch]; `fields` as in the op's schema."""
    grid, mean, std, patch, dtype = _parse(fields)
    patches = image.new_empty((grid.tiles, grid.tile_len, 3 * patch * patch), dtype=dtype)
    height, width = image.shape[:2]
    size = tuple(n * patch for n in grid.canvas_full)
    # The order of the passes is Pillow's; an axis that keeps its size must not come last.
    last = 1 if _rows_first(height, width, *size) else 0
    if image.shape[last] == size[last]:
        last = 1 - last
    with launch.on(image):
        if image.shape[1 - last] != size[1 - last]:
            image = _resize(image, 1 - last, size[1 - last])
        first, weight = _filter(image.shape[last], size[last], image.device)
        queue(
            patches_kernel, (launch.ceil_div(patches.numel(), BLOCK),),
            image, first, weight, patches,
            patches.numel(), grid.cols, grid.tile, grid.tile - grid.overlap, patch,
            weight.shape[1], image.shape[last], *image.stride(), *mean, *std,
            AXIS=last, BLOCK=BLOCK, num_warps=BLOCK // 8 // launch.describe(image.device).warp,
        )  # fmt: skip
    return patches
