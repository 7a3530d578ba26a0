"""Launch plan of merge_image_tokens (csrc/cuda/merge_image_tokens.cuh): a stretch of rows a block,
and all blocks at once."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

from flashvl_kernels.cuda.device import Device
from flashvl_kernels.cuda.launch import (
    Instance,
    Launch,
    Prepared,
    Rows,
    Size3,
    address,
    ceil_div,
    rows_of,
)
from flashvl_kernels.cuda.row_blocks import THREADS, WORDS, RowBlocks, Word, blocks, word_of

BLOCKS_A_MULTIPROCESSOR = 6
"""At once: kMergeBlocks."""


@dataclass(frozen=True)
class MergePlan:
    """rows_a_block: neighbours, so that a block counts the sentinels before it once."""

    grid: Size3
    shape: RowBlocks
    rows_a_block: int


class MergeImageTokensArgs(ctypes.Structure):
    """MergeImageTokensArgs<T> of csrc/cuda/merge_image_tokens.cuh."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("embeds", "images", "ids", "y")),
        ("embeds_rows", Rows),
        *(
            (name, ctypes.c_int64)
            for name in (
                "image_stride", "ids_stride", "rows", "columns", "image_rows", "rows_a_block",
            )
        ),
    )  # fmt: skip


def plan(rows: int, vectors: int, device: Device) -> MergePlan:
    """The launch over `rows` rows of `vectors` vectors.

    No more blocks than run at once: each has a stretch of rows as long as that takes.
    """
    shape = blocks(rows, vectors, device)
    resident = min(device.threads_per_multiprocessor // THREADS, BLOCKS_A_MULTIPROCESSOR)
    at_once = max(device.multiprocessors * resident // shape.parts, 1)
    stretch = ceil_div(ceil_div(rows, at_once), shape.together) * shape.together
    return MergePlan((ceil_div(rows, stretch), shape.parts, 1), shape, stretch)


def _instance(word: Word) -> Instance:
    return Instance(
        f"merge_image_tokens_kernel<{word.name}, {word.vector}>",
        f"MergeImageTokensArgs<{word.name}>",
    )


def instances() -> list[Instance]:
    """The kernels to build, by the size of a word."""
    return [_instance(word) for word in WORDS]


def prepare(flat: tuple[Any, ...], device: Device) -> Prepared:
    """A call on schema arguments."""
    embeds, input_ids, image_rows = flat
    y = embeds.new_empty(embeds.shape)
    if y.numel() == 0:
        return Prepared((y,), (), {}, frozenset())
    columns, itemsize = y.shape[-1], y.element_size()
    rows = y.numel() // columns
    embeds, text_at = rows_of(embeds)
    images, image_at = rows_of(image_rows)
    ids = input_ids.reshape(-1)
    word = word_of(
        itemsize,
        (columns, text_at.inner_stride, text_at.outer_stride, image_at.inner_stride),
        (embeds.data_ptr(), images.data_ptr(), y.data_ptr()),
    )

    def words(elements: int) -> int:
        return elements * itemsize // word.itemsize

    chosen = plan(rows, ceil_div(words(columns), word.vector), device)
    arguments = MergeImageTokensArgs(
        address(embeds),
        address(images),
        address(ids),
        address(y),
        Rows(text_at.inner, words(text_at.inner_stride), words(text_at.outer_stride)),
        words(image_at.inner_stride),
        ids.stride(0),
        rows,
        words(columns),
        image_rows.shape[0],
        chosen.rows_a_block,
    )
    launch = Launch(
        _instance(word), chosen.grid, (chosen.shape.along, chosen.shape.together, 1), arguments
    )
    tensors = {"embeds": embeds, "image_rows": images, "input_ids": ids, "y": y}
    return Prepared((y,), (launch,), tensors, frozenset(("y",)))
