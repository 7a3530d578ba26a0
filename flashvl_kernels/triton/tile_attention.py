"""Attention inside each tile: one program for a block of one tile's rows and one head.

Packed tiles need no padding and no list of blocks made on the host, which would have to wait for
the lengths: there are as many programs as the rows could need, and each counts the blocks of the
tiles before it to find its own (flash.py has the loop over keys). Bound by the tensor cores and the
exponentials: 4 N FLOPs a channel read.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from flashvl_kernels.triton import flash, launch, tuned
from flashvl_kernels.triton.dispatch import queue
from flashvl_kernels.triton.expect import Expect
from flashvl_kernels.triton.flash import attend, weighted, write_rows

MOST_TILES = 4096
"""Packed tiles whose lengths a program can count at once in its registers."""

EXPECT = {"tile_attention_kernel": Expect(tensor_cores=True)}


@triton.jit
def tile_attention_kernel(
    q, k, v, lengths, y,
    tiles, tokens, heads, scale,
    q_tile, q_token, q_head, q_channel,
    k_tile, k_token, k_head, k_channel,
    v_tile, v_token, v_head, v_channel,
    PACKED: tl.constexpr, TILES: tl.constexpr, UNIT: tl.constexpr, D: tl.constexpr,
    HEAD: tl.constexpr, TAIL: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # type: ignore[no-untyped-def] # fmt: skip
    """y [tiles, tokens, heads, D]; PACKED: [tokens, heads, D], with lengths [tiles]."""
    program = tl.program_id(0).to(tl.int64)
    head = program % heads
    part = program // heads
    if PACKED:
        each = tl.arange(0, TILES)
        counts = tl.load(lengths + each, each < tiles, 0)
        ends = tl.cumsum((counts + ROWS - 1) // ROWS, 0)
        before = ends <= part
        start = tl.sum(tl.where(before, counts, 0), 0)
        part -= tl.max(tl.where(before, ends, 0), 0)
        mine = tl.sum((before & (each < tiles)).to(tl.int32), 0)
        length = tl.sum(tl.where(each == mine, counts, 0), 0)
        q += start * q_token * UNIT
        k += start * k_token * UNIT
        v += start * v_token * UNIT
    else:
        blocks = (tokens + ROWS - 1) // ROWS
        tile = part // blocks
        part = part % blocks
        start = tile * tokens
        length = tl.full([], tokens, tl.int64)
        q += tile * q_tile * UNIT
        k += tile * k_tile * UNIT
        v += tile * v_tile * UNIT

    row = part * ROWS + tl.arange(0, ROWS)
    inside = row < length
    length = length.to(tl.int32)
    _top, total, acc, acc_tail = attend(
        q + head * q_head * UNIT, row, q_token, q_channel, inside,
        k + head * k_head * UNIT, k_token, k_channel, v + head * v_head * UNIT, v_token, v_channel,
        0, length, tl.full([ROWS], length, tl.int32), scale, UNIT, D, HEAD, TAIL, ROWS, KEYS,
    )  # fmt: skip
    y += (start * heads + head) * D
    out = weighted(acc, total).to(y.dtype.element_ty)
    write_rows(y, row, heads * D, out, inside, 0, HEAD, D)
    if TAIL:
        out_tail = weighted(acc_tail, total).to(y.dtype.element_ty)
        write_rows(y, row, heads * D, out_tail, inside, HEAD, TAIL, D)


def why_not(
    q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None, scale: float | None
) -> str | None:
    """A head's results stay in registers, and so do the lengths."""
    if lengths is not None and lengths.shape[0] > MOST_TILES:
        return f"{lengths.shape[0]} packed tiles; the triton kernel takes up to {MOST_TILES}"
    return flash.why_not(q)


def run(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None, scale: float | None) -> Tensor:
    """softmax(q k^T * scale) v inside each tile, shaped like q."""
    y = q.new_empty(q.shape)
    if y.numel() == 0:
        return y
    tokens, heads, head_dim = q.shape[-3:]
    q, factor = flash.scaled(q, scale)
    unit = launch.unit_of(q, k, v)
    strides = [launch.strides_of(t, unit) for t in (q, k, v)]
    if lengths is not None:
        strides = [(0, *stride) for stride in strides]
    tiles = q.shape[0] if lengths is None else lengths.shape[0]
    shape = tuned.choose(
        "tile_attention_kernel",
        flash.block,
        tokens,
        tiles * heads,
        head_dim,
        q.element_size(),
        launch.describe(q.device),
    )
    # Each packed tile can leave one block partly empty.
    blocks = launch.ceil_div(tokens, shape.rows)
    parts = tiles * blocks if lengths is None else blocks + tiles - 1
    head, tail = flash.split(head_dim, q.element_size())
    with launch.on(q):
        queue(
            tile_attention_kernel, (parts * heads,),
            q, k, v, q if lengths is None else lengths.contiguous(), y,
            tiles, tokens, heads, factor,
            *strides[0], *strides[1], *strides[2],
            PACKED=lengths is not None, TILES=launch.power_of_two(tiles) if lengths is not None
            else 1, UNIT=unit, D=head_dim, HEAD=head, TAIL=tail, ROWS=shape.rows, KEYS=shape.keys,
            num_warps=shape.warps, num_stages=shape.stages,
        )  # fmt: skip
    return y
