"""What the attention plans share: operands, and the blocks of csrc/cuda/flash.cuh."""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from flashvl_kernels.cuda.launch import TYPES, VECTOR_BYTES, Instance, vector_width

HEAD_DIMS = {2: (64, 80, 128, 256), 4: (64, 96, 128, 256)}
"""By bytes of an element: what a head dimension is padded to in shared memory."""
MAX_HEAD_DIM = 256


@dataclass(frozen=True)
class FlashShape:
    """A block: queries, keys at a time, threads, bytes of shared memory. csrc/cuda/flash.cuh."""

    rows: int
    keys: int
    threads: int
    shared_bytes: int


def padded(channels: int, itemsize: int) -> int:
    """The head dimension of the kernel that takes `channels`."""
    if channels > MAX_HEAD_DIM:
        raise ValueError(
            f"attention: the head dimension is {channels}; the CUDA kernels take at most "
            f"{MAX_HEAD_DIM}"
        )
    return next(dim for dim in HEAD_DIMS[itemsize] if dim >= channels)


def shape_of(dim: int, itemsize: int) -> FlashShape:
    """The block of Flash<T, dim>."""
    if itemsize == 2:
        threads = 128 if dim <= 128 else 64
        keys = 32 if dim <= 80 else 64 if dim <= 128 else 16
        rows = threads // 32 * 16 * (2 if dim <= 80 else 1)
        return FlashShape(rows, keys, threads, (rows + 2 * keys) * dim * 2)
    each = 4 if dim <= 96 else 2 if dim <= 128 else 1
    return fma_shape(dim, each)


def fma_shape(dim: int, each: int) -> FlashShape:
    """The block of FlashFma<dim, each, keys>."""
    keys = 32 if dim <= 128 else 16
    rows = 16 * each
    return FlashShape(rows, keys, 128, ((rows + 2 * keys) * (dim + 4) + rows * (keys + 8)) * 4)


class Operand(ctypes.Structure):
    """Operand<T> of csrc/cuda/attention_rows.cuh."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("batch", "token", "head", "channel", "wide")),
    )


def operand(tensor: Tensor, batch: int | None, token: int | None, head: int) -> Operand:
    """How the kernels read `tensor`, given its axes of batch, tokens (if any) and heads."""
    strides = [0 if axis is None else tensor.stride(axis) for axis in (batch, token, head)]
    channels = tensor.shape[-1]
    whole = vector_width(
        tensor.element_size(), (channels, *strides), (tensor.data_ptr(),)
    ) > 1 and (channels == 1 or tensor.stride(-1) == 1)
    return Operand(tensor.data_ptr(), *strides, tensor.stride(-1), whole)


def is_wide(out: Tensor) -> bool:
    """Whether rows of a contiguous result can be stored 16 bytes at a time."""
    row = out.shape[-1] * out.element_size()
    return row % VECTOR_BYTES == 0 and out.data_ptr() % VECTOR_BYTES == 0


def scale_of(scale: float | None, channels: int) -> float:
    """`scale`, or the default of scaled_dot_product_attention."""
    return 1 / math.sqrt(channels) if scale is None else scale


def instance(op: str, arguments: str, dtype: torch.dtype, dim: int, *more: str) -> Instance:
    """`op`_kernel<T, dim, more...>, which takes `arguments`<T>."""
    name = TYPES[dtype]
    return Instance(f"{op}_kernel<{', '.join((name, str(dim), *more))}>", f"{arguments}<{name}>")


def instances(op: str, arguments: str, *more: str) -> list[Instance]:
    """Of every dtype and head dimension."""
    return [
        instance(op, arguments, dtype, dim, *more)
        for dtype in TYPES
        for dim in HEAD_DIMS[dtype.itemsize]
    ]
