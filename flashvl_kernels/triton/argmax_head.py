"""The vocabulary's best k tokens: norm, product and selection, with no logits in memory.

A program multiplies a block of words and keeps the best of them in registers; a second kernel picks
from what the blocks kept. A logit and its index make one 64-bit key whose order is the wanted one:
higher logits first, then lower indices, NaN above all, as `torch.max` has it. Keys differ, so the
next best is the largest key below the last. Bound by the bytes of the vocabulary matrix.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor, int64

from flashvl_kernels.packing import FlatWeight
from flashvl_kernels.triton import launch, product, tuned
from flashvl_kernels.triton.addressing import row_offsets
from flashvl_kernels.triton.dispatch import queue
from flashvl_kernels.triton.expect import Expect
from flashvl_kernels.triton.product import add_product, input_tile, scaled, tile_of

MOST = 128
"""The most tokens asked for: each costs a pass over a block's logits in registers."""
CANDIDATES = 4096
"""Keys that a program of the second kernel reads at a time: 16 for each of 256 threads."""

EXPECT = {
    "rms_norm_kernel": Expect(wide_access=True),
    "best_of_block_kernel": Expect(tensor_cores=True),
    "best_of_all_kernel": Expect(),
}


@triton.jit
def key_of(logit, word):  # type: ignore[no-untyped-def]
    """int64 keys of fp32 logits. The bits of a float order as integers do once those below the sign
    are flipped in negative ones; -0 becomes 0, which equals it, and every NaN the one above Inf."""
    bits = tl.where(logit == 0, 0.0, logit).to(tl.int32, bitcast=True)
    order = tl.where(logit != logit, 0x7FC00000, bits ^ ((bits >> 31) & 0x7FFFFFFF))
    return (order.to(tl.int64) << 32) | (0xFFFFFFFF - word)


@triton.jit
def logit_of(key):  # type: ignore[no-untyped-def]
    """The fp32 logit of a key."""
    order = (key >> 32).to(tl.int32)
    return (order ^ ((order >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def best_of_block_kernel(
    x, kept, rows, words, columns, k,
    x_inner, x_outer_stride, x_inner_stride, x_stride,
    w, w_row_stride, w_stride, scale, scale_row_stride, scale_stride,
    FORMAT: tl.constexpr,
    ROWS: tl.constexpr, WORDS: tl.constexpr, STEP: tl.constexpr,
):  # type: ignore[no-untyped-def] # fmt: skip
    """kept [rows, blocks, k]: the keys of the best k words of each block, best first."""
    blocks = tl.cdiv(words, WORDS)
    row_tile, block = tile_of(tl.program_id(0), tl.cdiv(rows, ROWS), blocks)
    row = row_tile.to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    word = block.to(tl.int64) * WORDS + tl.arange(0, WORDS)[:, None]
    x_rows = x + row_offsets(row, x_inner, x_outer_stride, x_inner_stride)
    w_rows = w + word * w_row_stride
    scale_rows = scale + word * scale_row_stride

    logits = tl.zeros((ROWS, WORDS), tl.float32)
    for first in range(0, columns, STEP):
        column = first + tl.arange(0, STEP)[None, :].to(tl.int64)
        tile = input_tile(x_rows, row, rows, column, columns, x_stride)
        logits = add_product(
            logits, tile, w_rows, word < words, first, columns, w_stride, scale_rows, scale_stride,
            FORMAT, STEP,
        )  # fmt: skip
    logits = scaled(logits, scale_rows, word < words, FORMAT)
    logits = logits.to(x.dtype.element_ty).to(tl.float32)

    lowest = -0x8000000000000000
    along = block.to(tl.int64) * WORDS + tl.arange(0, WORDS)[None, :]
    key = tl.where(along < words, key_of(logits, along), lowest)
    here = kept + (row * blocks + block) * k
    for rank in tl.range(k):
        best = tl.max(key, 1)[:, None]
        tl.store(here + rank, best, row < rows)
        key = tl.where(key == best, lowest, key)


@triton.jit
def best_of_all_kernel(kept, values, indices, count, k, CANDIDATES: tl.constexpr):  # type: ignore[no-untyped-def] # fmt: skip
    """values, indices [rows, k] of a row's `count` keys, each the largest below the one before."""
    row = tl.program_id(0).to(tl.int64)
    lowest = tl.full((), -0x8000000000000000, tl.int64)
    last = tl.full((), 0x7FFFFFFFFFFFFFFF, tl.int64)
    for rank in tl.range(k):
        best = tl.full((CANDIDATES,), -0x8000000000000000, tl.int64)
        for first in tl.range(0, count, CANDIDATES):
            place = first + tl.arange(0, CANDIDATES)
            key = tl.load(kept + row * count + place, place < count, lowest)
            best = tl.maximum(best, tl.where(key < last, key, lowest))
        last = tl.max(best, 0)
        tl.store(values + row * k + rank, logit_of(last).to(values.dtype.element_ty))
        tl.store(indices + row * k + rank, 0xFFFFFFFF - (last & 0xFFFFFFFF))


def why_not(
    x: Tensor,
    norm_weight: Tensor,
    norm_eps: float,
    w_data: Tensor,
    w_scale: Tensor | None,
    w_format: str,
    w_columns: int,
    k: int,
) -> str | None:
    """The weight lies in rows, few tokens are asked for, a row fits into registers."""
    if k > MOST:
        return f"k is {k}; the triton kernel keeps up to {MOST} tokens"
    w = (w_data, w_scale, w_format, w_columns)
    return product.why_not_operand("w_vocab", w) or product.why_not_norm(x, norm_weight)


def run(
    x: Tensor,
    norm_weight: Tensor,
    norm_eps: float,
    w_data: Tensor,
    w_scale: Tensor | None,
    w_format: str,
    w_columns: int,
    k: int,
) -> tuple[Tensor, Tensor]:
    """The best k logits of each row and their words."""
    w: FlatWeight = (w_data, w_scale, w_format, w_columns)
    words, rows = w_data.shape[0], x.shape[0]
    values, indices = x.new_empty((rows, k)), x.new_empty((rows, k), dtype=int64)
    if rows == 0:
        return values, indices
    xs = launch.rows_of(product.normalised(x, norm_weight, None, norm_eps), rows)
    device = launch.describe(x.device)
    shape = tuned.choose(
        f"best_of_block_kernel {w_format}",
        product.blocks,
        rows,
        words,
        w_columns,
        x.element_size(),
        device,
    )
    blocks = launch.ceil_div(words, shape.units)
    each = min(k, shape.units)
    kept = x.new_empty((rows, blocks, each), dtype=int64)
    with launch.on(x):
        queue(
            best_of_block_kernel, (launch.ceil_div(rows, shape.rows) * blocks,),
            xs.tensor, kept, rows, words, w_columns, each, *xs.strides,
            *product.weight_arguments(w),
            FORMAT=w_format,
            ROWS=shape.rows, WORDS=shape.units, STEP=shape.step,
            num_warps=shape.warps, num_stages=shape.stages,
        )  # fmt: skip
        queue(
            best_of_all_kernel, (rows,),
            kept, values, indices, blocks * each, k,
            CANDIDATES=min(CANDIDATES, launch.power_of_two(blocks * each)),
            num_warps=256 // device.warp,
        )  # fmt: skip
    return values, indices
