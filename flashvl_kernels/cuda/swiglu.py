"""Launch plan of swiglu (csrc/cuda/swiglu.cuh): 256 threads over vectors of one or more rows."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

from flashvl_kernels.cuda.device import Device
from flashvl_kernels.cuda.launch import (
    TYPES,
    WARP,
    Instance,
    Launch,
    Prepared,
    Rows,
    address,
    ceil_div,
    power_of_two,
    rows_of,
    vector_width,
)

THREADS = 256
VECTORS = 2
"""Vectors a thread takes of a row: kSwigluVectors."""
GRID_Y_LIMIT = 65535


@dataclass(frozen=True)
class SwigluPlan:
    """grid: (parts of a row, groups of rows); block: (threads along a row, rows)."""

    grid: tuple[int, int]
    block: tuple[int, int]


def plan(rows: int, half: int, vector: int, device: Device) -> SwigluPlan:
    """The launch for `rows` results of `half` elements, `vector` an access.

    Narrow rows share a block. Few rows, as in decoding, get smaller blocks, so that all
    multiprocessors have one.
    """
    vectors = ceil_div(half, vector)
    along = min(max(power_of_two(ceil_div(vectors, VECTORS)), WARP), THREADS)
    while along > 2 * WARP and rows * ceil_div(vectors, along * VECTORS) < device.multiprocessors:
        along //= 2
    together = max(1, min(THREADS // along, rows))
    parts = ceil_div(vectors, along * VECTORS)
    return SwigluPlan((parts, min(ceil_div(rows, together), GRID_Y_LIMIT)), (along, together))


class SwigluArgs(ctypes.Structure):
    """SwigluArgs<T> of csrc/cuda/swiglu.cuh."""

    _fields_ = (
        ("gate_up", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("gate_up_rows", Rows),
        ("rows", ctypes.c_int64),
        ("half", ctypes.c_int64),
    )


def instances() -> list[Instance]:
    """The kernels to build: 16-byte accesses, or single elements for odd strides."""
    return [
        Instance(f"swiglu_kernel<{name}, {vector}>", f"SwigluArgs<{name}>")
        for dtype, name in TYPES.items()
        for vector in (16 // dtype.itemsize, 1)
    ]


def prepare(flat: tuple[Any, ...], device: Device) -> Prepared:
    """A call on schema arguments."""
    (gate_up,) = flat
    half = gate_up.shape[-1] // 2
    y = gate_up.new_empty((*gate_up.shape[:-1], half))
    if y.numel() == 0:
        return Prepared((y,), (), {}, frozenset())
    gate_up, rows = rows_of(gate_up)
    count = y.numel() // half
    vector = vector_width(
        y.element_size(),
        (half, rows.inner_stride, rows.outer_stride),
        (gate_up.data_ptr(), y.data_ptr()),
    )
    chosen = plan(count, half, vector, device)
    name = TYPES[y.dtype]
    launch = Launch(
        Instance(f"swiglu_kernel<{name}, {vector}>", f"SwigluArgs<{name}>"),
        (*chosen.grid, 1),
        (*chosen.block, 1),
        SwigluArgs(address(gate_up), address(y), rows, count, half),
    )
    return Prepared((y,), (launch,), {"gate_up": gate_up, "y": y}, frozenset(("y",)))
