"""Launches of image_to_patches (csrc/cuda/image_to_patches.cuh): a pass an axis, both in one launch
where what lies between them fits into shared memory (image_plan.py)."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from flashvl_kernels.cuda import image_plan
from flashvl_kernels.cuda.device import Device
from flashvl_kernels.cuda.image_plan import ALIGNMENT, CHANNELS, THREADS, AxisFilter, TilePlan
from flashvl_kernels.cuda.launch import TYPES, Instance, Launch, Prepared, address, ceil_div
from flashvl_kernels.tiles import TileGrid

NONE, PACKED, PLANES = range(3)
"""Which bytes of a row are neighbours: Runs."""


class Pixels(ctypes.Structure):
    """Pixels of csrc/cuda/image_stage.cuh."""

    _fields_ = (
        ("bytes", ctypes.c_void_p),
        *(
            (name, ctypes.c_int64)
            for name in ("row_stride", "pixel_stride", "channel_stride", "span")
        ),
        *((name, ctypes.c_int) for name in ("height", "width", "runs")),
    )


class Filter(ctypes.Structure):
    """Filter of csrc/cuda/image_filter.cuh."""

    _fields_ = (
        ("first", ctypes.c_void_p),
        ("weight", ctypes.c_void_p),
        ("groups", ctypes.c_int),
    )


class Stage(ctypes.Structure):
    """Stage of csrc/cuda/image_to_patches.cuh."""

    _fields_ = tuple(
        (name, ctypes.c_int) for name in ("outputs", "lines", "slots", "pitch", "unit")
    )


class ResizeArgs(ctypes.Structure):
    """ResizeArgs of csrc/cuda/image_to_patches.cuh."""

    _fields_ = (
        ("source", Pixels),
        ("filter", Filter),
        ("image", ctypes.c_void_p),
        ("image_pitch", ctypes.c_int64),
        *((name, ctypes.c_int) for name in ("outputs", "lines", "down")),
        ("stage", Stage),
        *((name, ctypes.c_int) for name in ("result_pitch", "result_offset", "taps_offset")),
    )


class Patches(ctypes.Structure):
    """Patches<T> of csrc/cuda/image_to_patches.cuh."""

    _fields_ = (
        ("patches", ctypes.c_void_p),
        *(
            (name, ctypes.c_int)
            for name in ("cols", "tile", "step", "patch", "turned", "tokens", "rows", "out_offset")
        ),
        ("mean", ctypes.c_float * 3),
        ("std", ctypes.c_float * 3),
    )


class PatchesArgs(ctypes.Structure):
    """PatchesArgs<T> of csrc/cuda/image_to_patches.cuh."""

    _fields_ = (
        ("source", Pixels),
        ("filter", Filter),
        ("to", Patches),
        ("down", ctypes.c_int),
        ("stage", Stage),
        ("taps_offset", ctypes.c_int),
    )


class ImageArgs(ctypes.Structure):
    """ImageArgs<T> of csrc/cuda/image_to_patches.cuh."""

    _fields_ = (
        ("source", Pixels),
        ("first", Filter),
        ("last", Filter),
        ("to", Patches),
        ("down", ctypes.c_int),
        ("stage", Stage),
        *(
            (name, ctypes.c_int)
            for name in (
                "between_pitch",
                "between_unit",
                "between_offset",
                "first_offset",
                "last_offset",
            )
        ),
    )


def _instance(kernel: str, dtype: torch.dtype) -> Instance:
    name, arguments = TYPES[dtype], {"image": "ImageArgs", "patches": "PatchesArgs"}[kernel]
    return Instance(f"{kernel}_kernel<{name}>", f"{arguments}<{name}>")


RESIZE = Instance(f"resize_kernel<{CHANNELS}>", "ResizeArgs")


def instances() -> list[Instance]:
    """The kernels to build."""
    return [
        RESIZE,
        *(_instance(kernel, dtype) for kernel in ("image", "patches") for dtype in TYPES),
    ]


def _turned(image: Tensor) -> bool:
    """Whether pixels below each other are the neighbours in memory: of a photo that was turned."""
    return image.stride(2) == 1 and image.stride(0) == CHANNELS != image.stride(1)


def _pixels(image: Tensor) -> Pixels:
    """uint8 [H, W, 3] by the rows that lie in memory."""
    if _turned(image):
        image = image.transpose(0, 1)
    (height, width, _), strides = image.shape, image.stride()
    runs = NONE
    if strides[1:] == (CHANNELS, 1):
        runs = PACKED
    elif strides[1] == 1:
        runs = PLANES
    pairs = zip(image.shape, strides, strict=True)
    span = 1 + sum((size - 1) * stride for size, stride in pairs)
    return Pixels(address(image), *strides, span, height, width, runs)


def _stage(plan: TilePlan) -> Stage:
    return Stage(plan.outputs, plan.lines, plan.rows, plan.pitch, plan.unit)


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


@dataclass(frozen=True)
class _Call:
    """A call: its passes, the filters they need, and what the patches are."""

    image: Tensor
    grid: TileGrid
    mean: list[float]
    std: list[float]
    patch: int
    dtype: torch.dtype
    passes: _Passes

    @property
    def turned(self) -> bool:
        """Whether the rows of the image in memory are columns of the result."""
        return _turned(self.image)

    def down(self, axis: int) -> bool:
        """Whether a pass along an axis goes down the image in memory."""
        return (axis == 0) != self.turned

    def filter(self, axis: int) -> AxisFilter:
        """Of an axis."""
        return image_plan.axis_filter(
            self.image.shape[axis], self.passes.size[axis], self.image.device
        )

    def both_passes(self, multiprocessors: int) -> image_plan.ImagePlan | None:
        """Of both passes in one launch, or None."""
        first, last, grid = self.passes.first, self.passes.last, self.grid
        if first is None:
            return None
        shape = grid.tile, grid.tiles, self.patch, last == 0, self.down(last), self.dtype.itemsize
        filters = self.filter(first), self.filter(last)
        return image_plan.image_plan(*filters, *shape, multiprocessors)

    def last_pass(self, down: bool) -> image_plan.PatchesPlan | None:
        """Of the last pass by itself. down: it goes down the image that it reads."""
        last = self.passes.last
        shape = self.grid.tile, self.patch, last == 0, down, self.dtype.itemsize
        return image_plan.patches_plan(self.filter(last), *shape)

    def first_pass(self) -> image_plan.ResizePlan | None:
        """Of the first pass by itself, of an axis that changes its size."""
        first = self.passes.first
        assert first is not None
        outputs, lines = self.passes.size[first], self.image.shape[self.passes.last]
        return image_plan.resize_plan(self.filter(first), outputs, lines, self.down(first))


def _call(image: Tensor, *fields: Any) -> _Call:
    from flashvl_kernels.ops.image_to_patches import _parse

    grid, mean, std, patch, dtype = _parse(fields)
    return _Call(image, grid, mean, std, patch, dtype, _passes(image, grid.canvas_full, patch))


def why_not(image: Tensor, *fields: Any) -> str | None:
    """The arithmetic is fp32, places are 32 bits, and an output's inputs fit in shared memory."""
    made = _call(image, *fields)
    if made.dtype == torch.float64:
        return "kernels compute in float32; dtype=torch.float64 runs through the reference"
    if made.both_passes(1) is not None:
        return None
    plans: list[object] = [made.last_pass(made.down(made.passes.last))]
    if made.passes.first is not None:
        plans.append(made.first_pass())
    if None in plans:
        return (
            f"patches of {made.patch} pixels from an image of {image.shape[0]}x{image.shape[1]} "
            f"need more shared memory than a block has; reduce the image first"
        )
    return None


@dataclass
class _Work:
    """The launches of a call, and the tensors they touch."""

    call: _Call
    patches: Tensor
    launches: list[Launch] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def add(
        self, kernel: Instance, blocks: int, arguments: ctypes.Structure, shared_bytes: int
    ) -> None:
        launch = Launch(kernel, (blocks, 1, 1), (THREADS, 1, 1), arguments, shared_bytes)
        self.launches.append(launch)

    def filter(self, name: str, axis: int) -> Filter:
        """The filter of an axis, kept alive."""
        found = self.call.filter(axis)
        self.tensors |= {f"{name} first": found.first, f"{name} weight": found.weight}
        return Filter(address(found.first), address(found.weight), found.taps // 4)

    def to(self, tokens: int, rows: int, out_offset: int, turned: bool) -> tuple[int, Patches]:
        """Blocks of so many tokens and rows of them, and what they write."""
        made, grid, floats = self.call, self.call.grid, ctypes.c_float * 3
        to = Patches(
            address(self.patches), grid.cols, grid.tile, grid.tile - grid.overlap, made.patch,
            turned, tokens, rows, out_offset, floats(*made.mean), floats(*made.std),
        )  # fmt: skip
        return grid.tiles * ceil_div(grid.tile, tokens) * ceil_div(grid.tile, rows), to

    def both_passes(self, plan: image_plan.ImagePlan) -> None:
        """In one launch."""
        made, passes = self.call, self.call.passes
        assert passes.first is not None
        blocks, to = self.to(plan.tokens, plan.rows, 0, made.turned)
        arguments = ImageArgs(
            _pixels(made.image), self.filter("first", passes.first),
            self.filter("last", passes.last), to, made.down(passes.last), _stage(plan.first),
            plan.between_pitch, plan.last.unit, *plan.offsets,
        )  # fmt: skip
        self.add(_instance("image", made.dtype), blocks, arguments, plan.shared_bytes)

    def first_pass(self) -> Tensor:
        """Into an image whose other axis keeps its size."""
        made, image, first, plan = (
            self.call, self.call.image, self.call.passes.first, self.call.first_pass(),
        )  # fmt: skip
        assert first is not None and plan is not None
        outputs, lines = made.passes.size[first], image.shape[made.passes.last]
        down = made.down(first)
        height, width = (outputs, lines) if down else (lines, outputs)
        pitch = ceil_div(CHANNELS * width, ALIGNMENT) * ALIGNMENT
        resized = self.tensors["resized"] = image.new_empty(height, pitch)
        arguments = ResizeArgs(
            _pixels(image), self.filter("first", first), address(resized), pitch, outputs, lines,
            down, _stage(plan.staged), plan.result_pitch, *plan.offsets,
        )  # fmt: skip
        blocks = ceil_div(outputs, plan.staged.outputs) * ceil_div(lines, plan.staged.lines)
        self.add(RESIZE, blocks, arguments, plan.shared_bytes)
        pixels = resized[:, : CHANNELS * width].unflatten(1, (width, CHANNELS))
        return pixels.transpose(0, 1) if made.turned else pixels

    def last_pass(self, image: Tensor) -> None:
        """Of `image`, whose other axis has its size."""
        last, turned = self.call.passes.last, _turned(image)
        down = (last == 0) != turned
        plan = self.call.last_pass(down)
        assert plan is not None
        shared = plan.staged.shared_bytes
        blocks, to = self.to(plan.tokens, 1, shared, turned)
        arguments = PatchesArgs(
            _pixels(image), self.filter("last", last), to, down, _stage(plan.staged),
            plan.staged.staged_bytes,
        )  # fmt: skip
        kernel = _instance("patches", self.call.dtype)
        self.add(kernel, blocks, arguments, shared + plan.out_bytes)


def prepare(flat: tuple[Any, ...], device: Device) -> Prepared:
    """A call on schema arguments."""
    made = _call(*flat)
    grid, image = made.grid, made.image
    shape = grid.tiles, grid.tile_len, CHANNELS * made.patch**2
    patches = image.new_empty(shape, dtype=made.dtype)
    work = _Work(made, patches)
    plan = made.both_passes(device.multiprocessors)
    if plan is not None:
        work.both_passes(plan)
    else:
        work.last_pass(image if made.passes.first is None else work.first_pass())
    work.tensors |= {"image": image, "patches": patches}
    written = frozenset(("patches", "resized"))
    return Prepared((patches,), tuple(work.launches), work.tensors, written)
