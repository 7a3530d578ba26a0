"""What a launch is chosen from: the device's properties, the shape of a tile, the rows of a tensor.

Every choice is a pure function of shapes and a `Device`, so that the tests can ask for the choice
on a GPU they do not have, and the compile check builds exactly what a launch would.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache, lru_cache

import torch
from torch import Tensor

VECTOR_BYTES = 16
"""The widest access of one thread to global memory, on every GPU so far."""


@dataclass(frozen=True)
class Device:
    """What launch choices depend on.

    arch: "sm_90" or "gfx942". warp: threads a warp (wave). processors: SMs or compute units.
    shared: bytes of shared memory (LDS) a block may take.
    """

    arch: str
    warp: int
    processors: int
    shared: int

    @property
    def amd(self) -> bool:
        """An AMD GPU, under ROCm."""
        return self.arch.startswith("gfx")

    @property
    def capability(self) -> int:
        """90 for sm_90; 0 on an AMD GPU."""
        return 0 if self.amd else int(self.arch.removeprefix("sm_"))


EMULATED = Device("sm_90", 32, 132, 232448)
"""What a tensor off the GPU is launched for, as the tests do: an H100."""


@lru_cache(maxsize=32)
def describe(device: torch.device) -> Device:
    """The properties of the GPU behind `device`."""
    if device.type != "cuda":
        return EMULATED
    found = torch.cuda.get_device_properties(device)
    if torch.version.hip is not None:
        arch = str(found.gcnArchName).split(":")[0]
        return Device(arch, found.warp_size, found.multi_processor_count, 65536)
    shared = int(getattr(found, "shared_memory_per_block_optin", 101376))
    arch = f"sm_{found.major}{found.minor}"
    return Device(arch, found.warp_size, found.multi_processor_count, shared)


@cache
def _several() -> bool:
    return torch.cuda.device_count() > 1


_NOTHING = nullcontext()


def on(tensor: Tensor) -> AbstractContextManager[object]:
    """Makes the tensor's GPU the current one: Triton launches on the current device's stream.
    The only GPU of a machine is it already."""
    if tensor.is_cuda and _several():
        return torch.cuda.device(tensor.device)
    return _NOTHING


def ceil_div(number: int, by: int) -> int:
    """number / by, rounded up. triton.cdiv looks into both for constants of kernels, which takes
    ten times as long."""
    return -(-number // by)


def power_of_two(number: int) -> int:
    """The least power of two that is at least `number`."""
    return 1 << max(number - 1, 0).bit_length()


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
        and -(-rows // (2 * height)) * -(-columns // width) >= 2 * device.processors
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
    columns = tensor.shape[-1]
    axes: list[tuple[int, int]] = []  # (size, stride), merged, outermost first
    for size, stride in zip(tensor.shape[:-1], tensor.stride()[:-1], strict=True):
        if size == 1:
            continue
        if axes and axes[-1][1] == size * stride:
            axes[-1] = (axes[-1][0] * size, stride)
        else:
            axes.append((size, stride))
    if len(axes) > 2:
        return rows_of(tensor.contiguous(), count)
    if count is None:
        count = tensor.numel() // columns if columns else 0
    (_, outer), (inner, within) = [(1, 0)] * (2 - len(axes)) + axes
    return Rows(tensor, count, columns, inner, outer, within, tensor.stride(-1))
