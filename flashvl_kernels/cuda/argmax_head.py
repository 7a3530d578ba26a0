"""Launch plan of argmax_head (csrc/cuda/argmax_head.cuh): a share of the words a block."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flashvl_kernels.cuda.device import KIB, Device
from flashvl_kernels.cuda.launch import (
    TYPES,
    VECTOR_BYTES,
    Instance,
    Launch,
    Prepared,
    Rows,
    address,
    ceil_div,
    rows_of,
)

THREADS = 256
"""kHeadThreads."""
WORDS = 128
"""Of a block at a time: kHeadWords."""
KEY_PITCH = WORDS + 2
"""Keys between two rows of them: kKeyPitch."""
ROWS = 8
"""At most, for one reading of the words: kRowsATile."""
MOST = 128
"""The most words asked for: BestWords::kMost."""
FORMATS = ("bf16", "int8", "int4")
RESIDENT = {"bf16": 3, "int8": 2, "int4": 2}
"""Blocks that the registers of a multiprocessor hold, by format: kHeadBlocks."""
STATIC_BYTES = 2 * KIB
"""More than a block takes beside its dynamic shared memory, the system's part included."""
LEAST_SHARED = 96 * KIB
"""What every device gives a block."""


@dataclass(frozen=True)
class HeadPlan:
    """rows: that one reading of the words serves. blocks: that share the words."""

    rows: int
    groups: int
    blocks: int
    shared_bytes: int


def columns_a_vector(itemsize: int, format: str) -> int:
    """Of a word: kColumns."""
    return {"bf16": VECTOR_BYTES // itemsize, "int8": 16, "int4": 32}[format]


def shared_bytes(rows: int, columns: int, itemsize: int, format: str) -> int:
    """Keys of 128 words and the normalised rows, in whole chunks."""
    chunk = 4 * columns_a_vector(itemsize, format)
    return rows * (KEY_PITCH * 8 + ceil_div(columns, chunk) * chunk * itemsize)


def plan(
    rows: int, words: int, columns: int, itemsize: int, format: str, device: Device
) -> HeadPlan:
    """Eight rows at a time if shared memory holds them, else as many as it does.

    As many blocks as run at once, so that a row is normalised once for many words.
    """
    limit = device.shared_bytes_per_block - STATIC_BYTES
    at_once = min(rows, ROWS)
    while at_once > 1 and shared_bytes(at_once, columns, itemsize, format) > limit:
        at_once -= 1
    shared = shared_bytes(at_once, columns, itemsize, format)
    resident = min(
        RESIDENT[format], device.shared_bytes_per_multiprocessor // (shared + STATIC_BYTES)
    )
    groups = ceil_div(rows, at_once)
    share = device.multiprocessors * max(resident, 1) // groups
    return HeadPlan(at_once, groups, min(ceil_div(words, WORDS), max(share, 1)), shared)


class Vocabulary(ctypes.Structure):
    """Vocabulary<T, kFormat> of csrc/cuda/vocabulary.cuh."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("words", "stride", "scale_stride", "columns")),
    )


class ArgmaxHeadArgs(ctypes.Structure):
    """ArgmaxHeadArgs<T, kFormat> of csrc/cuda/argmax_head.cuh."""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("norm_weight", ctypes.c_void_p),
        ("x_rows", Rows),
        ("vocabulary", Vocabulary),
        *((name, ctypes.c_void_p) for name in ("values", "indices", "kept", "counters")),
        ("rows", ctypes.c_int64),
        ("rows_at_once", ctypes.c_int),
        ("k", ctypes.c_int),
        ("eps", ctypes.c_float),
    )


def _instance(dtype: torch.dtype, format: str, wide: bool) -> Instance:
    name, number = TYPES[dtype], FORMATS.index(format)
    return Instance(
        f"argmax_head_kernel<{name}, {number}, {'true' if wide else 'false'}>",
        f"ArgmaxHeadArgs<{name}, {number}>",
    )


def instances() -> list[Instance]:
    """The kernels to build."""
    return [
        _instance(dtype, format, wide)
        for dtype in TYPES
        for format in FORMATS
        for wide in (True, False)
    ]


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
    """The weight lies in rows, few tokens are asked for, a row fits into shared memory."""
    if w_format not in FORMATS:
        return "w_vocab is in panels, the CPU's layout; pack it in the layout 'rows'"
    if k > MOST:
        return f"k is {k}; the CUDA kernel keeps up to {MOST} tokens"
    if shared_bytes(1, w_columns, x.element_size(), w_format) > LEAST_SHARED:
        return f"rows have {w_columns} channels; the CUDA kernel keeps one in {LEAST_SHARED} bytes"
    if w_data.shape[0] >= 2**32:
        return f"w_vocab has {w_data.shape[0]} rows; the CUDA kernel takes fewer than 2^32"
    return None


def _with_neighbours(tensor: Tensor) -> Tensor:
    """The tensor itself where elements of its last axis are neighbours, else a copy."""
    return tensor if tensor.shape[-1] < 2 or tensor.stride(-1) == 1 else tensor.contiguous()


def _is_wide(x: Tensor, rows: Rows, norm: Tensor, w: Tensor, columns: int, vector: int) -> bool:
    """Whether every access may be one of 16 bytes."""
    strides = (rows.inner_stride, rows.outer_stride)
    sizes = [stride * x.element_size() for stride in strides] + [w.stride(0) * w.element_size()]
    addresses = [x.data_ptr(), norm.data_ptr(), w.data_ptr()]
    return columns % vector == 0 and all(n % VECTOR_BYTES == 0 for n in sizes + addresses)


def prepare(flat: tuple[Any, ...], device: Device) -> Prepared:
    """A call on schema arguments."""
    x, norm_weight, eps, w_data, w_scale, format, columns, k = flat
    rows, words, itemsize = x.shape[0], w_data.shape[0], x.element_size()
    values, indices = x.new_empty((rows, k)), x.new_empty((rows, k), dtype=torch.int64)
    if rows == 0:
        return Prepared((values, indices), (), {}, frozenset())
    chosen = plan(rows, words, columns, itemsize, format, device)
    x, x_rows = rows_of(x)
    norm_weight, w_data = norm_weight.contiguous(), _with_neighbours(w_data)
    kept = x.new_empty((chosen.groups, chosen.blocks, chosen.rows, k), dtype=torch.int64)
    counters = torch.zeros(chosen.groups, dtype=torch.int32, device=x.device)
    tensors = {
        "x": x, "norm_weight": norm_weight, "words": w_data, "values": values, "indices": indices,
        "kept": kept, "counters": counters,
    }  # fmt: skip
    scale_stride = 0
    if w_scale is not None:
        tensors["scale"] = w_scale.contiguous()
        scale_stride = w_scale.shape[1] if w_scale.dim() == 2 else 1
    vector = columns_a_vector(itemsize, format)
    arguments = ArgmaxHeadArgs(
        address(x), address(norm_weight), x_rows,
        Vocabulary(
            address(w_data), address(tensors.get("scale")), words, w_data.stride(0), scale_stride,
            columns,
        ),
        address(values), address(indices), address(kept), address(counters),
        rows, chosen.rows, k, eps,
    )  # fmt: skip
    wide = _is_wide(x, x_rows, norm_weight, w_data, columns, vector)
    launch = Launch(
        _instance(x.dtype, format, wide),
        (chosen.groups, chosen.blocks, 1),
        (THREADS, 1, 1),
        arguments,
        chosen.shared_bytes,
    )
    written = frozenset(("values", "indices", "kept", "counters"))
    return Prepared((values, indices), (launch,), tensors, written)
