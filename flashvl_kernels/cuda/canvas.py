"""Tokens of overlapping tiles, for the kernels that read them as one canvas."""

from __future__ import annotations

import ctypes

from flashvl_kernels.tiles import RULES, TileGrid


class TileAxis(ctypes.Structure):
    """TileAxis of csrc/cuda/tiling.cuh."""

    _fields_ = tuple(
        (name, ctypes.c_int) for name in ("tiles", "tile", "overlap", "border", "length")
    )


class Tiling(ctypes.Structure):
    """Tiling of csrc/cuda/tiling.cuh."""

    _fields_ = (
        ("down", TileAxis),
        ("across", TileAxis),
        ("rule", ctypes.c_int),
        ("blended", ctypes.c_int),
    )


class TokenCanvas(ctypes.Structure):
    """TokenCanvas of csrc/cuda/token_canvas.cuh."""

    _fields_ = (
        ("tiling", Tiling),
        ("tile_stride", ctypes.c_int64),
        ("token_stride", ctypes.c_int64),
    )


def blends(grid: TileGrid) -> bool:
    """Whether some position is made of more than one tile."""
    return grid.rule != "crop" and grid.overlap > 0 and grid.tiles > 1


def why_not(grid: TileGrid) -> str | None:
    """Places on a canvas, its border included, are 32 bits."""
    height, width = grid.canvas_full
    if height * width >= 2**31:
        return f"a canvas of {height} x {width} patches; the CUDA kernel takes fewer than 2^31"
    return None


def tiling(grid: TileGrid) -> Tiling:
    """`grid` as the kernels take it."""
    down, across = (
        TileAxis(tiles, grid.tile, grid.overlap, grid.border, length)
        for tiles, length in zip((grid.rows, grid.cols), grid.canvas, strict=True)
    )
    return Tiling(down, across, RULES.index(grid.rule), blends(grid))


def of_tiles(grid: TileGrid, tile_stride: int, token_stride: int) -> TokenCanvas:
    """The canvas of `grid` over tiles in memory; strides in whatever the kernel counts."""
    return TokenCanvas(tiling(grid), tile_stride, token_stride)


def of_images(height: int, width: int, tile_stride: int, token_stride: int) -> TokenCanvas:
    """Images that were never cut: each is one tile, whose side is the length of a row."""
    down, across = TileAxis(1, height, 0, 0, height), TileAxis(1, width, 0, 0, width)
    return TokenCanvas(Tiling(down, across, RULES.index("crop"), False), tile_stride, token_stride)
