"""Launch plan of stitched_tile_attention (csrc/cuda/stitched_tile_attention.cuh)."""

from __future__ import annotations

import ctypes
from typing import Any

from flashvl_kernels.cuda import canvas, flash_plan
from flashvl_kernels.cuda.canvas import Tiling, blends
from flashvl_kernels.cuda.device import Device
from flashvl_kernels.cuda.flash_plan import Operand
from flashvl_kernels.cuda.launch import Instance, Launch, Prepared, address, ceil_div
from flashvl_kernels.tiles import TileGrid


class StitchedTileAttentionArgs(ctypes.Structure):
    """StitchedTileAttentionArgs<T> of csrc/cuda/stitched_tile_attention.cuh."""

    _fields_ = (
        *((name, Operand) for name in ("q", "k", "v")),
        ("out", ctypes.c_void_p),
        ("tiling", Tiling),
        *((n, ctypes.c_int64) for n in ("image_blocks", "heads", "channels", "out_wide")),
        ("scale", ctypes.c_float),
    )


def stretches(tiles: int, grid: TileGrid) -> list[int]:
    """The lengths of the stretches of one axis: stretch_at of the kernel's header."""
    if blends(grid):
        own = [grid.tile - 2 * grid.overlap] * tiles
        own[0] += grid.overlap - grid.border
        own[-1] += grid.overlap - grid.border
        return [n for middle in own for n in (middle, grid.overlap)][:-1]
    own = [grid.tile - grid.overlap] * tiles
    own[0] += (grid.overlap + 1) // 2 - grid.border
    own[-1] += grid.overlap // 2 - grid.border
    return own


def plan(grid: TileGrid, rows: int) -> int:
    """Blocks of one image and head, `rows` positions each: whole rectangles, none shared."""
    return sum(
        ceil_div(height * width, rows)
        for height in stretches(grid.rows, grid)
        for width in stretches(grid.cols, grid)
    )


def _kernel(blended: bool) -> str:
    return "true" if blended else "false"


def instances() -> list[Instance]:
    """The kernels to build: positions of one tile, and blended ones."""
    return [
        instance
        for blended in (False, True)
        for instance in flash_plan.instances(
            "stitched_tile_attention", "StitchedTileAttentionArgs", _kernel(blended)
        )
    ]


def prepare(flat: tuple[Any, ...], device: Device) -> Prepared:
    """A call on schema arguments."""
    q, k, v, scale, *fields = flat
    grid = TileGrid.from_flat(fields)
    images, (heads, channels) = q.shape[0] // grid.tiles, q.shape[2:]
    out = q.new_empty(images, grid.canvas_len, heads, channels)
    if out.numel() == 0:
        return Prepared((out,), (), {}, frozenset())
    dim = flash_plan.padded(channels, q.element_size())
    shape = flash_plan.shape_of(dim, q.element_size())
    blocks, blended = plan(grid, shape.rows), blends(grid)
    arguments = StitchedTileAttentionArgs(
        *(flash_plan.operand(t, 0, 1, 2) for t in (q, k, v)),
        address(out),
        canvas.tiling(grid),
        blocks,
        heads,
        channels,
        flash_plan.is_wide(out),
        flash_plan.scale_of(scale, channels),
    )
    name = "stitched_tile_attention"
    launch = Launch(
        flash_plan.instance(name, "StitchedTileAttentionArgs", q.dtype, dim, _kernel(blended)),
        (blocks * images, heads, 1),
        (shape.threads, 1, 1),
        arguments,
        # The blend of a block stays in shared memory, in fp32.
        shape.shared_bytes + (shape.rows * dim * 4 if blended else 0),
    )
    tensors = {"q": q, "k": k, "v": v, "out": out}
    return Prepared((out,), (launch,), tensors, frozenset(("out",)))
