"""Launch plans of the row norms (csrc/cuda/norm_row.cuh): a warp a row, or a block a row."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

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
    rows_of,
    vector_width,
)

WARPS_A_BLOCK = 4
"""Where a warp has a row: 128 threads leave the scheduler room to place the tail."""
BLOCK_THREADS = 512
"""At most, where a block has a row; csrc/cuda/norm_row.cuh bounds its registers by it."""
HELD_BY_WARP = (2, 4, 8)
HELD_BY_BLOCK = (1, 2, 4)
"""Vectors a thread may hold; each is one instance of the kernel."""


@dataclass(frozen=True)
class NormPlan:
    """vector: elements an access. held: vectors a thread keeps, 0 when rows are too long for
    registers. block_row: a block has one row, not each of its warps."""

    vector: int
    held: int
    block_row: bool
    grid: int
    block: tuple[int, int]


def plan(rows: int, columns: int, vector: int, device: Device) -> NormPlan:
    """The launch for `rows` rows of `columns` elements, read `vector` at a time.

    A warp a row needs no barrier, so it is taken wherever registers hold the row and the rows give
    every multiprocessor a block. The grid is as many blocks as a multiprocessor's threads make,
    more than registers admit at once: the loads of one warp lie under the sums and stores of
    another, and a block goes on to further rows with the weight in its first-level cache.
    """
    vectors = ceil_div(columns, vector)
    by_warp = ceil_div(vectors, WARP)
    enough = rows >= device.multiprocessors * WARPS_A_BLOCK
    by_warp_held = HELD_BY_WARP if vector > 1 else HELD_BY_WARP[-1:]
    if by_warp <= by_warp_held[-1] and (enough or by_warp <= by_warp_held[0]):
        held = next(h for h in by_warp_held if h >= by_warp)
        threads, a_block = WARP, WARPS_A_BLOCK
        block_row = False
    else:
        threads = min(ceil_div(vectors, WARP) * WARP, BLOCK_THREADS)
        needed = ceil_div(vectors, threads)
        by_block_held = HELD_BY_BLOCK if vector > 1 else ()
        held = next((h for h in by_block_held if h >= needed), 0)
        a_block, block_row = 1, True
    resident = device.threads_per_multiprocessor // (threads * a_block)
    grid = min(ceil_div(rows, a_block), device.multiprocessors * max(resident, 1))
    return NormPlan(vector, held, block_row, grid, (threads, a_block))


class NormArgs(ctypes.Structure):
    """NormArgs<T> of csrc/cuda/norm_row.cuh."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "residual", "weight", "bias", "y", "total")),
        ("x_rows", Rows),
        ("residual_rows", Rows),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("eps", ctypes.c_float),
    )


def _instance(op: str, dtype: torch.dtype, vector: int, held: int, block_row: bool) -> Instance:
    name = TYPES[dtype]
    if held == 0:
        return Instance(f"{op}_long_kernel<{name}, {vector}>", f"NormArgs<{name}>")
    row = "true" if block_row else "false"
    return Instance(f"{op}_kernel<{name}, {vector}, {held}, {row}>", f"NormArgs<{name}>")


def instances(op: str) -> list[Instance]:
    """Every kernel that `prepare` may name for `op`."""
    found = []
    for dtype in TYPES:
        width = 16 // dtype.itemsize
        found += [_instance(op, dtype, width, held, False) for held in HELD_BY_WARP]
        found += [_instance(op, dtype, width, held, True) for held in HELD_BY_BLOCK]
        found += [_instance(op, dtype, 1, HELD_BY_WARP[-1], False)]
        found += [_instance(op, dtype, vector, 0, True) for vector in (width, 1)]
    return found


def prepare(
    op: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    residual: Tensor | None,
    device: Device,
) -> Prepared:
    """The outputs (y, new_residual) and the launch of a norm over the last axis of x."""
    y = x.new_empty(x.shape)
    total = x.new_empty(0 if residual is None else x.shape)
    if x.numel() == 0:
        return Prepared((y, total), (), {}, frozenset())
    columns = x.shape[-1]
    x, x_rows = rows_of(x)
    tensors = {"x": x, "weight": weight.contiguous(), "y": y}
    residual_rows = Rows(1, columns, 0)
    if residual is not None:
        tensors["residual"], residual_rows = rows_of(residual)
        tensors["new_residual"] = total
    if bias is not None:
        tensors["bias"] = bias.contiguous()
    strides = [
        stride for r in (x_rows, residual_rows) for stride in (r.inner_stride, r.outer_stride)
    ]
    addresses = tuple(tensor.data_ptr() for tensor in tensors.values())
    vector = vector_width(x.element_size(), (columns, *strides), addresses)
    rows = x.numel() // columns
    chosen = plan(rows, columns, vector, device)
    arguments = NormArgs(
        address(x),
        address(tensors.get("residual")),
        address(tensors["weight"]),
        address(tensors.get("bias")),
        address(y),
        address(tensors.get("new_residual")),
        x_rows,
        residual_rows,
        rows,
        columns,
        eps,
    )
    kernel = _instance(op, x.dtype, vector, chosen.held, chosen.block_row)
    launch = Launch(kernel, (chosen.grid, 1, 1), (*chosen.block, 1), arguments)
    return Prepared((y, total), (launch,), tensors, frozenset(("y", "new_residual")))
