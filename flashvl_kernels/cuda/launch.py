"""The vocabulary of launch plans: a launch, a prepared call, and where the rows of a tensor lie."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from flashvl_kernels.gpu import VECTOR_BYTES, ceil_div, merged_axes, power_of_two

__all__ = [
    "TYPES",
    "VECTOR_BYTES",
    "WARP",
    "Instance",
    "Launch",
    "Prepared",
    "Rows",
    "Size3",
    "address",
    "ceil_div",
    "power_of_two",
    "rows_of",
    "vector_width",
]

WARP = 32

TYPES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "float"}
"""The element types of csrc/cuda/types.cuh."""

Size3 = tuple[int, int, int]


@dataclass(frozen=True)
class Instance:
    """One instantiation of a kernel template.

    expression: what NVRTC and a template-id call it, inside namespace flashvl::cuda.
    arguments: the type of its one parameter.
    """

    expression: str
    arguments: str


@dataclass(frozen=True)
class Launch:
    """One kernel launch: everything but the stream."""

    kernel: Instance
    grid: Size3
    block: Size3
    arguments: ctypes.Structure
    shared_bytes: int = 0


@dataclass(frozen=True)
class Prepared:
    """A call ready to run: `outputs` are allocated, `launches` run in order on one stream.

    tensors: every tensor the launches touch, by name, kept alive with them; those in `written`
    may be written.
    """

    outputs: tuple[Tensor, ...]
    launches: tuple[Launch, ...]
    tensors: Mapping[str, Tensor]
    written: frozenset[str]


class Rows(ctypes.Structure):
    """csrc/cuda/rows.cuh."""

    _fields_ = (
        ("inner", ctypes.c_int64),
        ("inner_stride", ctypes.c_int64),
        ("outer_stride", ctypes.c_int64),
    )


def rows_of(tensor: Tensor) -> tuple[Tensor, Rows]:
    """The rows of [..., C] as the kernels read them: the tensor itself where one or two strides
    reach all rows and a row's elements are neighbours, else a contiguous copy."""
    columns, groups = tensor.shape[-1], merged_axes(tensor)
    if len(groups) > 2 or (columns > 1 and tensor.stride(-1) != 1):
        count = tensor.numel() // columns if columns else 0
        return tensor.contiguous(), Rows(max(count, 1), columns, 0)
    inner, stride = groups[-1] if groups else (1, columns)
    outer_stride = groups[0][1] if len(groups) == 2 else 0
    return tensor, Rows(inner, stride, outer_stride)


def vector_width(itemsize: int, sizes: tuple[int, ...], addresses: tuple[int, ...]) -> int:
    """Elements a 16-byte access moves, or 1 where some stride, width or address forbids it.

    sizes: in elements; addresses: in bytes.
    """
    width = VECTOR_BYTES // itemsize
    fits = all(size % width == 0 for size in sizes)
    return width if fits and all(a % VECTOR_BYTES == 0 for a in addresses) else 1


def address(tensor: Tensor | None) -> int:
    """Of the first element; 0, a null pointer, for None."""
    return 0 if tensor is None else tensor.data_ptr()
