"""What a launch may be besides its model's choice: the candidates of `flashvl-kernels tune`.

A candidate is dropped before it is compiled where its stages do not fit into shared memory or its
sums into registers: both follow from the shape. Each space is at most MOST long, those first that
are the likeliest to be fast, so that all of a GPU's can be compiled in a minute and timed in two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

from flashvl_kernels.gpu import Device, ceil_div
from flashvl_kernels.triton import flash
from flashvl_kernels.triton.flash import Block
from flashvl_kernels.triton.launch import Tile
from flashvl_kernels.triton.product import Blocks

MOST = 40
SUMS = 128
"""fp32 sums of a product a thread may hold: half its registers, as wgmma's largest tiles do."""
STATE = 200
"""Results and scores of attention a thread may hold; the rest of its 255 are addresses."""

TALL = (
    (128, 256, 64, 8, 3), (128, 256, 64, 8, 4), (256, 128, 64, 8, 3), (256, 128, 64, 8, 4),
    (128, 128, 64, 8, 3), (128, 128, 64, 8, 4), (128, 128, 64, 4, 3), (128, 128, 64, 4, 4),
    (64, 256, 64, 4, 3), (64, 256, 64, 4, 4), (64, 128, 64, 4, 3), (64, 128, 64, 4, 4),
    (128, 64, 64, 4, 3), (128, 64, 64, 4, 4), (64, 64, 64, 4, 4), (64, 64, 128, 4, 3),
    (128, 128, 64, 8, 5), (128, 128, 128, 8, 3), (64, 256, 64, 8, 4), (64, 128, 128, 4, 3),
    (64, 128, 64, 4, 5), (64, 128, 64, 8, 4), (128, 64, 64, 8, 4), (128, 64, 128, 4, 3),
    (64, 64, 64, 4, 6), (64, 64, 128, 4, 4), (128, 128, 32, 8, 4),
)  # fmt: skip
"""(rows, units, step, warps, stages) of products of many rows in 16 bits. A wide tile reads its
operands less often; a small one leaves no processor without one, and two of them share one, so that
one's loads pass under the other's products."""
SPLIT = (
    (128, 128, 64, 8, 3), (128, 64, 64, 4, 4), (64, 128, 64, 4, 4), (64, 64, 128, 4, 3),
    (64, 64, 64, 4, 4), (128, 128, 64, 4, 4),
)  # fmt: skip
"""Those whose sums over columns are split as well, where tiles are fewer than processors."""
SHORT = (
    (64, 128, 4, 4), (64, 128, 4, 5), (32, 128, 4, 4), (32, 128, 4, 6), (128, 128, 4, 3),
    (64, 64, 4, 4), (64, 64, 4, 6), (32, 64, 4, 6), (128, 64, 4, 4), (16, 128, 4, 6),
    (32, 128, 2, 4), (64, 128, 2, 4), (64, 128, 8, 4), (128, 128, 8, 3), (16, 128, 2, 6),
)  # fmt: skip
"""(units, step, warps, stages) of products of few rows, which are bound by bytes of w under way."""


def neighbours(default: Any, device: Device, *numbers: int) -> list[Any]:
    """The space around the model's choice for a call with these numbers (`tuned.choose`)."""
    kinds: dict[type, Callable[..., Iterator[Any]]] = {
        Tile: tiles, Blocks: products, Block: attentions,
    }  # fmt: skip
    found = dict.fromkeys(kinds[type(default)](default, device, *numbers))
    found.pop(default, None)
    return list(islice(found, MOST))


def tiles(default: Tile, device: Device, *_: int) -> Iterator[Tile]:
    """Half, double and four times the rows of a tile: loads under way against programs. Half and
    double the warps: registers a thread. Columns stay: a reduction needs the whole row."""
    for rows in (default.rows // 2, default.rows, 2 * default.rows, 4 * default.rows):
        for warps in (default.warps // 2, default.warps, 2 * default.warps):
            held = rows * default.columns / (max(warps, 1) * device.warp)
            if rows and warps and warps * device.warp <= 1024 and held <= 64:
                yield Tile(rows, default.columns, warps)


def products(
    default: Blocks,
    device: Device,
    rows: int,
    units: int,
    columns: int,
    itemsize: int,
    gated: int = 0,
) -> Iterator[Blocks]:
    """TALL or SHORT by the model's rows, and both in parts. fp32 keeps the model's tile, whose
    operands are in registers, and its step, the chains of its sums. Steps of int4 lie inside a
    group of 128."""

    def made(shape: tuple[int, ...], splits: int) -> Blocks | None:
        height, width, step, warps, stages = shape
        weights = 2 * width if gated else width
        shared = (height + weights) * step * itemsize * stages
        if shared > device.shared_bytes_per_block:
            return None
        if height * weights > SUMS * warps * device.warp:
            return None
        steps = ceil_div(columns, step)
        part = ceil_div(steps, splits) * step
        if not part:
            return None
        return Blocks(height, width, step, ceil_div(columns, part), part, warps, stages)

    def wanted() -> Iterator[tuple[tuple[int, ...], int]]:
        if itemsize == 4:
            for stages in (2, 3, 4):
                for warps in (4, 8):
                    shape = (default.rows, default.units, default.step, warps, stages)
                    yield from ((shape, splits) for splits in parts(shape))
        elif default.rows <= 32:
            for splits_of in (lambda shape: parts(shape)[:1], lambda shape: parts(shape)[1:]):
                for short in SHORT:
                    shape = (default.rows, *short)
                    yield from ((shape, splits) for splits in splits_of(shape))
        else:
            yield from ((shape, 1) for shape in TALL)
            for shape in SPLIT:
                yield from ((shape, splits) for splits in parts(shape) if splits > 1)

    def parts(shape: tuple[int, ...]) -> list[int]:
        """Those that give each processor a tile, then one more or fewer: up to three each."""
        height, width, step, *_ = shape
        count = ceil_div(rows, height) * ceil_div(units, width)
        steps = ceil_div(columns, step)
        filled = max(device.multiprocessors // max(count, 1), 1)
        several = [filled, 2 * filled, 3 * filled] if count < device.multiprocessors else [1]
        several += [filled // 2] if filled > 3 else []
        return [n for n in several if n == 1 or (not gated and 1 < n <= steps // 2)] or [1]

    for shape, splits in wanted():
        if device.amd:
            shape = (*shape[:4], 2)
        found = made(shape, splits)
        if found is not None:
            yield found


def attentions(
    default: Block, device: Device, rows: int, heads: int, head_dim: int, itemsize: int
) -> Iterator[Block]:
    """Rows: keys read again against registers, and programs. Keys of a step: loads under way and
    fewer rescalings against scores in registers. Warps and stages as for products. fp32, whose
    products hold their operands in registers, stays near the model."""
    width = sum(flash.split(head_dim, itemsize))
    if itemsize == 4:
        for keys in (default.keys // 2, default.keys):
            for warps in (4, 8):
                if keys >= 16:
                    yield replace(default, keys=keys, warps=warps)
        return
    heights = {default.rows, 64} if default.rows <= 64 else set()
    if default.rows < 64:
        heights |= {max(default.rows // 2, 16), 2 * default.rows}
    else:
        heights |= {64, 128}
    for height in sorted(heights, reverse=True):
        for warps in (4, 8):
            for keys in (64, 128, 32):
                if height * (width + keys) > STATE * warps * device.warp:
                    continue
                if warps == 8 and height < 64:
                    continue
                for stages in (2,) if device.amd else (2, 3, 4):
                    if (height + 2 * stages * keys) * width * itemsize <= (
                        device.shared_bytes_per_block
                    ):
                        yield Block(height, keys, warps, stages)
