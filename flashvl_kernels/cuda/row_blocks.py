"""What the plans of the ops that move rows share: words of a copy, and blocks over rows."""

from __future__ import annotations

from dataclasses import dataclass

from flashvl_kernels.cuda.device import Device
from flashvl_kernels.cuda.launch import WARP, ceil_div

THREADS = 256
VECTORS = 2
"""Vectors a thread takes of a row: kRowVectors."""


@dataclass(frozen=True)
class Word:
    """What a copy moves at once: `vector` elements of `itemsize` bytes, called `name` in csrc."""

    name: str
    itemsize: int
    vector: int


WORDS = (Word("float", 4, 4), Word("float", 4, 1), Word("BF16", 2, 1))
"""Widest first; any two or four bytes will do, for a copy looks at no value."""


def word_of(itemsize: int, sizes: tuple[int, ...], addresses: tuple[int, ...]) -> Word:
    """The widest word that divides every size (in elements of `itemsize`) and address (bytes)."""
    places = (*(size * itemsize for size in sizes), *addresses)
    return next(w for w in WORDS if all(p % (w.itemsize * w.vector) == 0 for p in places))


@dataclass(frozen=True)
class RowBlocks:
    """parts: blocks that share a row. along, together: threads along a row, rows of a block."""

    parts: int
    along: int
    together: int


def blocks(rows: int, vectors: int, device: Device) -> RowBlocks:
    """Blocks of up to 256 threads over `rows` rows of `vectors` vectors, 2 of them a thread.

    Warps along a row are as few as take it, narrow rows share a block, and few rows, as in
    decoding, get smaller blocks, so that all multiprocessors have one.
    """
    parts = ceil_div(vectors, THREADS * VECTORS)
    along = _warps(ceil_div(vectors, parts * VECTORS))
    while along > WARP and rows * parts < device.multiprocessors:
        along = _warps(ceil_div(along, 2))
        parts = ceil_div(vectors, along * VECTORS)
    together = max(1, min(THREADS // along, rows * parts // device.multiprocessors))
    return RowBlocks(parts, along, together)


def _warps(threads: int) -> int:
    return ceil_div(threads, WARP) * WARP
