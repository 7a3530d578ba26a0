"""Image rows in place of the sentinels' embeddings: one program ranks the ids, a copy follows.

Which image row a sentinel takes is the number of sentinels before it. One program counts them,
because ids are 8 bytes a token where the copy moves two hidden vectors (a thousandth at 1536
channels in bf16). The copy reads each row from the side it comes from only: the other load is
masked off, which costs no traffic. Bound by bytes; an id is compared, never used as an address.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from flashvl_kernels.ops.merge_image_tokens import SENTINELS
from flashvl_kernels.triton import launch, tuned
from flashvl_kernels.triton.addressing import row_offsets
from flashvl_kernels.triton.dispatch import queue
from flashvl_kernels.triton.expect import Expect

EXPECT = {
    "image_rank_kernel": Expect(),
    # The rank of the rows of a tile is a number a row; of short rows, a thread has two.
    "merge_image_tokens_kernel": Expect(wide_access=True, narrow=2),
}

RANKED = 1024
"""Ids that the ranking program takes at a time: a prompt of a few images is two or three rounds."""


@triton.jit
def image_rank_kernel(
    ids, rank,
    tokens, images, stride,
    FIRST: tl.constexpr, FURTHER: tl.constexpr, BLOCK: tl.constexpr,
):  # type: ignore[no-untyped-def] # fmt: skip
    """rank [tokens]: the image row that a token takes, -1 where it keeps its embedding."""
    before = tl.zeros((), tl.int32)
    for start in range(0, tokens, BLOCK):
        token = start + tl.arange(0, BLOCK).to(tl.int64)
        number = tl.load(ids + token * stride, token < tokens, 0)
        sentinel = (number == FIRST) | (number == FURTHER)
        order = before + tl.cumsum(sentinel.to(tl.int32), 0) - 1
        taken = tl.where(sentinel & (order < images), order, -1)
        tl.store(rank + token, taken, token < tokens)
        before += tl.sum(sentinel.to(tl.int32), 0)


@triton.jit
def merge_image_tokens_kernel(
    embeds, rank, image_rows, y,
    rows, columns, across,
    inner, outer_stride, inner_stride, stride,
    image_row_stride, image_stride,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # type: ignore[no-untyped-def] # fmt: skip
    """y [rows, columns] from embeds or image_rows; `across` tiles lie beside each other."""
    program = tl.program_id(0).to(tl.int64)
    rows_here = program // across * ROWS + tl.arange(0, ROWS)
    # One axis: as [ROWS, 1] each thread would load the number once for each of its columns.
    taken = tl.load(rank + rows_here, rows_here < rows, -1).to(tl.int64)[:, None]
    row = rows_here[:, None]
    column = program % across * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    inside = (row < rows) & (column < columns)

    image_at = taken * image_row_stride + column * image_stride
    image = tl.load(image_rows + image_at, inside & (taken >= 0), 0.0)
    text_at = row_offsets(row, inner, outer_stride, inner_stride) + column * stride
    text = tl.load(embeds + text_at, inside & (taken < 0), 0.0)
    tl.store(y + row * columns + column, tl.where(taken >= 0, image, text), inside)


def why_not(embeds: Tensor, input_ids: Tensor, image_rows: Tensor) -> str | None:
    """Every call is supported."""
    return None


def run(embeds: Tensor, input_ids: Tensor, image_rows: Tensor) -> Tensor:
    """embeds with image_rows at the sentinels, in order."""
    y = embeds.new_empty(embeds.shape)
    if y.numel() == 0:
        return y
    rows = launch.rows_of(embeds)
    ids = input_ids.reshape(-1)
    rank = torch.empty(rows.count, dtype=torch.int32, device=embeds.device)
    shape = tuned.choose(
        "merge_image_tokens_kernel", launch.tile,
        rows.count, rows.columns, y.element_size(), launch.describe(embeds.device),
    )  # fmt: skip
    across = launch.ceil_div(rows.columns, shape.columns)
    with launch.on(embeds):
        queue(
            image_rank_kernel, (1,),
            ids, rank, rows.count, image_rows.shape[0], ids.stride(0),
            FIRST=SENTINELS[0], FURTHER=SENTINELS[1], BLOCK=RANKED, num_warps=4,
        )  # fmt: skip
        queue(
            merge_image_tokens_kernel, (launch.ceil_div(rows.count, shape.rows) * across,),
            rows.tensor, rank, image_rows, y, rows.count, rows.columns, across, *rows.strides,
            image_rows.stride(0), image_rows.stride(1),
            ROWS=shape.rows, COLUMNS=shape.columns, num_warps=shape.warps,
        )  # fmt: skip
    return y
