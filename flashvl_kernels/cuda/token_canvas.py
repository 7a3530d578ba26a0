"""The tokens that a kernel reads: of an image, or of a canvas stitched from overlapping tiles."""

from __future__ import annotations

import ctypes

from torch import Tensor

from flashvl_kernels.tiles import RULES, TileGrid


class CanvasAxis(ctypes.Structure):
    """CanvasAxis of csrc/cuda/token_canvas.cuh."""

    _fields_ = tuple((name, ctypes.c_int) for name in ("tiles", "tile", "overlap", "border"))


class TokenCanvas(ctypes.Structure):
    """TokenCanvas of csrc/cuda/token_canvas.cuh."""

    _fields_ = (
        ("down", CanvasAxis),
        ("across", CanvasAxis),
        ("rule", ctypes.c_int),
        ("blended", ctypes.c_int),
        ("tile_stride", ctypes.c_int64),
        ("token_stride", ctypes.c_int64),
    )


def of(x: Tensor, grid: TileGrid) -> TokenCanvas:
    """The canvas of `grid` over the tiles in x [B*T, t*t, C]."""
    down, across = (CanvasAxis(n, grid.tile, grid.overlap, grid.border) for n in grid.flat()[:2])
    blended = grid.rule != "crop" and grid.overlap > 0 and grid.tiles > 1
    return TokenCanvas(down, across, RULES.index(grid.rule), blended, x.stride(0), x.stride(1))


def whole(x: Tensor, height: int, width: int) -> TokenCanvas:
    """The tokens x [B, height * width, C] of images that were never cut."""
    down, across = CanvasAxis(1, height, 0, 0), CanvasAxis(1, width, 0, 0)
    return TokenCanvas(down, across, 0, False, x.stride(0), x.stride(1))
