"""What Triton launches are made from: the shape of a tile, the rows of a tensor, its strides."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass

from torch import Tensor

from flashvl_kernels import gpu
from flashvl_kernels.gpu import (
    EMULATED,
    VECTOR_BYTES,
    Device,
    ceil_div,
    describe,
    merged_axes,
    power_of_two,
)

__all__ = [
    "EMULATED",
    "VECTOR_BYTES",
    "Device",
    "Rows",
    "Tile",
    "ceil_div",
    "describe",
    "on",
    "power_of_two",
    "rows_of",
    "strides_of",
    "tile",
    "unit_of",
]


def on(tensor: Tensor) -> AbstractContextManager[object]:
    """Makes the tensor's GPU the current one: Triton launches on the current device's stream."""
    return gpu.on(tensor.device)


@dataclass(frozen=True)
class Tile:
    """One program's share of a [rows, columns] problem: powers of two, and warps to work on it."""

    rows: int
    columns: int
    warps: int


def tile(rows: int, columns: int, itemsize: int, device: Device, widest: int = 2048) -> Tile:
    """The tile of a memory-bound pass over [rows, columns] elements of `itemsize` bytes.

    A tile holds whole rows up to `widest` columns: a reduction along the row passes its row length
    there. Rows join until the tile has 4 KiB, two 16-byte accesses for each thread of 4 warps of
    32: with less, latency shows; with more, processors are left without a tile. They stop joining
    where tiles would become fewer than two a processor, so that a short call still spreads out.
    Two accesses a thread set the warps, up to 512 threads; 1024 where a thread would otherwise hold
    more than 32 elements, which in fp32 fill half its registers.
    """
    width = min(power_of_two(columns), widest)
    height = 1
    while (
        width * height * itemsize < 4096
        and height < rows
        and -(-rows // (2 * height)) * -(-columns // width) >= 2 * device.multiprocessors
    ):
        height *= 2
    threads = width * height * itemsize // VECTOR_BYTES // 2
    most = 1024 if width * height > 512 * 32 else 512
    return Tile(height, width, max(min(threads, most) // device.warp, 1))


@dataclass(frozen=True)
class Rows:
    """A tensor [..., C] as `count` rows: row r starts at (r // inner) * outer_stride + (r % inner)
    * inner_stride, and its elements lie `stride` apart. `tensor` keeps the memory alive."""

    tensor: Tensor
    count: int
    columns: int
    inner: int
    outer_stride: int
    inner_stride: int
    stride: int

    @property
    def strides(self) -> tuple[int, int, int, int]:
        """What a kernel takes: inner, outer_stride, inner_stride, stride."""
        return self.inner, self.outer_stride, self.inner_stride, self.stride


def rows_of(tensor: Tensor, count: int | None = None) -> Rows:
    """The rows of `tensor` along its last axis, read through its strides.

    Leading axes that lie in one another merge; two that do not are what a dropped CLS token or a
    slice of heads leaves. A tensor with more of them is copied.
    count: how many rows there are, for a tensor that may have no columns to count them by.
    """
    columns, axes = tensor.shape[-1], merged_axes(tensor)
    if len(axes) > 2:
        return rows_of(tensor.contiguous(), count)
    if count is None:
        count = tensor.numel() // columns if columns else 0
    (_, outer), (inner, within) = [(1, 0)] * (2 - len(axes)) + axes
    return Rows(tensor, count, columns, inner, outer, within, tensor.stride(-1))


def unit_of(*tensors: Tensor, length: int = 0) -> int:
    """The elements that `length` and all strides but those of channels are multiples of: as many as
    an access of the first tensor's dtype moves, or a smaller power of two.

    Triton knows whether an integer is a multiple of 16, and of nothing less: told this, it moves
    vectors where the stride of a head is 72, or half a head 40 channels long.
    """
    strides = (stride for tensor in tensors for stride in tensor.stride()[:-1])
    return math.gcd(VECTOR_BYTES // tensors[0].element_size(), length, *strides)


def strides_of(tensor: Tensor, unit: int) -> tuple[int, ...]:
    """What a kernel takes: strides in units of `unit`, but for the last one, in elements."""
    *outer, channel = tensor.stride()
    return (*(stride // unit for stride in outer), channel)
