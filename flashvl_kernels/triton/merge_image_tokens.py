"""Image rows written over the text embeddings at the sentinel ids, one program for a few rows.

Which image row comes next depends on all sentinels before it. Each program counts those again, 8
bytes for each token before its own, which the L2 holds; that saves a launch and a table. Programs
take up to 16 rows where there are many, so that the count stays small beside the copy: at 3400
tokens of 4 KiB, 8 rows a program on an H100, 13 KiB of ids for 64 KiB read and written. Bound by
bytes, no FLOPs: each row is copied once, from one place or the other. An id is only compared, never
used as an index, and the rank of rows before the first sentinel, -1, is masked.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from flashvl_kernels.ops.merge_image_tokens import SENTINELS
from flashvl_kernels.triton import launch
from flashvl_kernels.triton.addressing import row_offsets
from flashvl_kernels.triton.expect import Expect
from flashvl_kernels.triton.launch import Device, Tile

# The program's own id, and 8 a thread of those before it: they end at any place.
EXPECT = {"merge_image_tokens_kernel": Expect(wide_access=True, narrow=9)}
BIT_EQUAL = 1.0
"""A copy has nothing to round."""

COUNTED = 1024
"""Ids counted at a time: one load of 8 a thread."""

FIRST_OF_IMAGE = tl.constexpr(SENTINELS[0])
REST_OF_IMAGE = tl.constexpr(SENTINELS[1])


@triton.jit
def sentinels(ids, at, stride, end):  # type: ignore[no-untyped-def]
    """1 where the id at place `at`, below `end`, stands for an image row, else 0."""
    found = tl.load(ids + at * stride, at < end, 0)
    return ((found == FIRST_OF_IMAGE) | (found == REST_OF_IMAGE)).to(tl.int32)


@triton.jit
def merge_image_tokens_kernel(
    embeds, ids, images, merged,
    rows, columns, image_rows, ids_stride, images_stride, images_channel_stride,
    inner, outer_stride, inner_stride, stride,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, COUNTED: tl.constexpr,
):  # type: ignore[no-untyped-def] # fmt: skip
    """merged [rows, columns]: the next of the image rows at a sentinel, else the embedding."""
    first = tl.program_id(0).to(tl.int64) * ROWS
    seen = tl.zeros((COUNTED,), tl.int32)
    for start in range(0, first, COUNTED):
        seen += sentinels(ids, start + tl.arange(0, COUNTED).to(tl.int64), ids_stride, first)
    row = first + tl.arange(0, ROWS)
    mine = sentinels(ids, row, ids_stride, rows)
    rank = (tl.sum(seen, 0) + tl.cumsum(mine, 0) - 1).to(tl.int64)
    # A sentinel past the last image row keeps its embedding.
    from_image = ((mine == 1) & (rank < image_rows))[:, None]

    row = row[:, None]
    source = embeds + row_offsets(row, inner, outer_stride, inner_stride)
    image = images + rank[:, None] * images_stride
    for left in range(0, columns, COLUMNS):
        column = left + tl.arange(0, COLUMNS)[None, :].to(tl.int64)
        inside = (row < rows) & (column < columns)
        text = tl.load(source + column * stride, inside & (from_image == 0), 0.0)
        seen_row = tl.load(image + column * images_channel_stride, inside & from_image, 0.0)
        tl.store(merged + row * columns + column, tl.where(from_image, seen_row, text), inside)


def tile(rows: int, columns: int, itemsize: int, device: Device) -> Tile:
    """4 KiB at a time as in `launch.tile`, but rows join also where one alone has as much: up to
    16, as long as there are two programs a processor, and 256 bytes of each lie together."""
    height = 1
    while height < 16 and triton.cdiv(rows, 2 * height) >= 2 * device.processors:
        height *= 2
    width = min(launch.power_of_two(columns), 4096 // itemsize // height)
    threads = height * width * itemsize // launch.VECTOR_BYTES // 2
    return Tile(height, width, max(threads // device.warp, 1))


def why_not(embeds: Tensor, input_ids: Tensor, image_rows: Tensor) -> str | None:
    """Every call is supported."""
    return None


def run(embeds: Tensor, input_ids: Tensor, image_rows: Tensor) -> Tensor:
    """embeds, with the image rows at the sentinels; a new tensor."""
    merged = embeds.new_empty(embeds.shape)
    if merged.numel() == 0:
        return merged
    rows, ids = launch.rows_of(embeds), input_ids.reshape(-1)
    device = launch.describe(embeds.device)
    shape = tile(rows.count, rows.columns, embeds.element_size(), device)
    with launch.on(embeds):
        merge_image_tokens_kernel[(triton.cdiv(rows.count, shape.rows),)](
            rows.tensor, ids, image_rows, merged,
            rows.count, rows.columns, image_rows.shape[0], ids.stride(0), *image_rows.stride(),
            *rows.strides,
            ROWS=shape.rows, COLUMNS=shape.columns, COUNTED=COUNTED, num_warps=shape.warps,
        )  # fmt: skip
    return merged
