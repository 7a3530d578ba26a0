"""Launch plan of rope_qkv (csrc/cuda/rope_qkv.cuh): a thread a vector of four heads of a row."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from flashvl_kernels.cuda.device import Device
from flashvl_kernels.cuda.launch import (
    TYPES,
    WARP,
    Instance,
    Launch,
    Prepared,
    address,
    ceil_div,
    vector_width,
)

THREADS = 256
HEADS = 4
"""Heads of a thread: kRopeHeads."""


class RopeTable(ctypes.Structure):
    """RopeTable<T> of csrc/cuda/rope_qkv.cuh."""

    _fields_ = (
        ("narrow", ctypes.c_void_p),
        ("wide", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("row", "channel", "vectors")),
    )


class RopeTarget(ctypes.Structure):
    """RopeTarget<T> of csrc/cuda/rope_qkv.cuh."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("sequence", "head", "token", "channel")),
    )


class RopeQkvArgs(ctypes.Structure):
    """RopeQkvArgs<T> of csrc/cuda/rope_qkv.cuh."""

    _fields_ = (
        ("qkv", ctypes.c_void_p),
        ("cos", RopeTable),
        ("sin", RopeTable),
        *((name, ctypes.c_void_p) for name in ("positions", "slots", "q")),
        ("k", RopeTarget),
        ("v", RopeTarget),
        *(
            (name, ctypes.c_int64)
            for name in (
                "qkv_row", "qkv_channel", "positions_stride", "slots_stride",
                "rows", "heads", "kv_heads", "half", "table_rows", "capacity", "slot_count",
            )
        ),
    )  # fmt: skip


def plan(rows: int, heads: int, vectors: int, device: Device) -> tuple[int, int]:
    """Blocks, and threads of each, for `rows` rows of `heads` heads in all, half of each `vectors`
    vectors. Few rows, as in decoding, get smaller blocks, so that all multiprocessors have one.
    """
    units = rows * ceil_div(heads, HEADS) * vectors
    threads = THREADS
    while threads > WARP and ceil_div(units, threads) < device.multiprocessors:
        threads //= 2
    return ceil_div(units, threads), threads


def _instance(dtype: torch.dtype, vector: int) -> Instance:
    name = TYPES[dtype]
    return Instance(f"rope_qkv_kernel<{name}, {vector}>", f"RopeQkvArgs<{name}>")


def instances() -> list[Instance]:
    """The kernels to build: 16-byte accesses, or single elements of any stride."""
    return [_instance(dtype, vector) for dtype in TYPES for vector in (16 // dtype.itemsize, 1)]


def _table(table: Tensor) -> RopeTable:
    size, place = table.element_size(), table.data_ptr()
    strides = table.stride(0) if table.shape[0] > 1 else 0, table.shape[1]
    fits = vector_width(size, strides, (place,)) > 1
    neighbours = table.shape[1] == 1 or table.stride(1) == 1
    wide = table.dtype == torch.float32
    return RopeTable(
        0 if wide else place, place if wide else 0, *table.stride(), fits and neighbours
    )


def _target(cache: Tensor) -> RopeTarget:
    return RopeTarget(cache.data_ptr(), *cache.stride())


def _vector(half: int, *tensors: Tensor) -> int:
    """Elements an access moves of `tensors`, whose last axis is channels."""
    places = [
        stride
        for tensor in tensors
        for size, stride in zip(tensor.shape[:-1], tensor.stride()[:-1], strict=True)
        if size > 1
    ]
    if any(tensor.shape[-1] > 1 and tensor.stride(-1) != 1 for tensor in tensors):
        return 1
    addresses = tuple(tensor.data_ptr() for tensor in tensors)
    return vector_width(tensors[0].element_size(), (half, *places), addresses)


def rotate(
    flat: tuple[Any, ...], k: Tensor, v: Tensor, slots: Tensor | None, device: Device
) -> tuple[Tensor, Launch | None, dict[str, Tensor]]:
    """The queries, the launch that writes them and k and v [B, Hkv, S, D], and what it touches.

    flat: the arguments of rope_qkv. slots: None where row n goes to slot n.
    """
    qkv, cos, sin, positions, heads, kv_heads = flat
    rows, half = qkv.shape[0], cos.shape[1]
    q = qkv.new_empty(rows, heads, 2 * half)
    if q.numel() == 0:
        return q, None, {}
    vector = _vector(half, qkv, q, k, v)
    arguments = RopeQkvArgs(
        address(qkv),
        _table(cos),
        _table(sin),
        address(positions),
        address(slots),
        address(q),
        _target(k),
        _target(v),
        *qkv.stride(),
        0 if positions is None else positions.stride(0),
        0 if slots is None else slots.stride(0),
        rows,
        heads,
        kv_heads,
        half,
        cos.shape[0],
        k.shape[2],
        k.shape[0] * k.shape[2],
    )
    grid, threads = plan(rows, heads + 2 * kv_heads, half // vector, device)
    launch = Launch(_instance(qkv.dtype, vector), (grid, 1, 1), (threads, 1, 1), arguments)
    tensors = {"qkv": qkv, "cos": cos, "sin": sin, "positions": positions, "slots": slots, "q": q}
    return q, launch, {name: each for name, each in tensors.items() if each is not None}


def prepare(flat: tuple[Any, ...], device: Device) -> Prepared:
    """A call on schema arguments."""
    qkv, cos, *_, kv_heads = flat
    k, v = (qkv.new_empty(qkv.shape[0], kv_heads, 2 * cos.shape[1]) for _ in range(2))
    # One sequence whose positions are the rows: [1, kv_heads, N, D].
    q, launch, tensors = rotate(
        flat, k.transpose(0, 1).unsqueeze(0), v.transpose(0, 1).unsqueeze(0), None, device
    )
    if launch is None:
        return Prepared((q, k, v), (), {}, frozenset())
    written = frozenset(("q", "k", "v"))
    return Prepared((q, k, v), (launch,), {**tensors, "k": k, "v": v}, written)
