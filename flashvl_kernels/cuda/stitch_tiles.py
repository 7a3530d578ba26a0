"""Launch plan of stitch_tiles (csrc/cuda/stitch_tiles.cuh): a row of threads a canvas position."""

from __future__ import annotations

import ctypes
from typing import Any

from torch import Tensor

from flashvl_kernels.cuda import canvas
from flashvl_kernels.cuda.canvas import TokenCanvas, blends
from flashvl_kernels.cuda.device import Device
from flashvl_kernels.cuda.launch import (
    TYPES,
    Instance,
    Launch,
    Prepared,
    Size3,
    address,
    ceil_div,
    vector_width,
)
from flashvl_kernels.cuda.row_blocks import WORDS, RowBlocks, Word, blocks, word_of
from flashvl_kernels.tiles import TileGrid

GRID_X_LIMIT = 2**31 - 1


class StitchTilesArgs(ctypes.Structure):
    """StitchTilesArgs<T> of csrc/cuda/stitch_tiles.cuh."""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("canvas", TokenCanvas),
        ("positions", ctypes.c_int64),
        ("channels", ctypes.c_int64),
    )


def plan(positions: int, vectors: int, device: Device) -> tuple[Size3, RowBlocks]:
    """The grid, and its blocks, over `positions` rows of `vectors` vectors."""
    shape = blocks(positions, vectors, device)
    return (min(ceil_div(positions, shape.together), GRID_X_LIMIT), shape.parts, 1), shape


def _instance(name: str, vector: int, blend: bool) -> Instance:
    last = "true" if blend else "false"
    return Instance(f"stitch_tiles_kernel<{name}, {vector}, {last}>", f"StitchTilesArgs<{name}>")


def instances() -> list[Instance]:
    """The kernels to build: blends by dtype, copies by the size of a word."""
    blended = [
        _instance(name, vector, True)
        for dtype, name in TYPES.items()
        for vector in (16 // dtype.itemsize, 1)
    ]
    return blended + [_instance(word.name, word.vector, False) for word in WORDS]


def _word(x: Tensor, y: Tensor, blend: bool) -> Word:
    sizes = x.shape[2], *(s for n, s in zip(x.shape[:2], x.stride()[:2], strict=True) if n > 1)
    addresses = x.data_ptr(), y.data_ptr()
    if not blend:
        return word_of(x.element_size(), sizes, addresses)
    return Word(TYPES[x.dtype], x.element_size(), vector_width(x.element_size(), sizes, addresses))


def why_not(x: Tensor, *fields: Any) -> str | None:
    """Places on a canvas are 32 bits."""
    return canvas.why_not(TileGrid.from_flat(fields))


def prepare(flat: tuple[Any, ...], device: Device) -> Prepared:
    """A call on schema arguments."""
    x, *fields = flat
    grid = TileGrid.from_flat(fields)
    y = x.new_empty(x.shape[0] // grid.tiles, grid.canvas_len, x.shape[2])
    if y.numel() == 0:
        return Prepared((y,), (), {}, frozenset())
    if x.shape[2] > 1 and x.stride(2) != 1:
        x = x.contiguous()
    blend = blends(grid)
    word = _word(x, y, blend)
    channels, tile_stride, token_stride = (
        size * x.element_size() // word.itemsize for size in (x.shape[2], *x.stride()[:2])
    )
    positions = y.shape[0] * y.shape[1]
    chosen, shape = plan(positions, ceil_div(channels, word.vector), device)
    arguments = StitchTilesArgs(
        address(x),
        address(y),
        canvas.of_tiles(grid, tile_stride, token_stride),
        positions,
        channels,
    )
    launch = Launch(
        _instance(word.name, word.vector, blend),
        chosen,
        (shape.along, shape.together, 1),
        arguments,
    )
    return Prepared((y,), (launch,), {"x": x, "y": y}, frozenset(("y",)))
