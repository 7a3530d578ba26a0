"""Launch plan of decode_attention (csrc/cuda/decode_attention.cuh): keys split over blocks."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import torch

from flashvl_kernels.cuda import flash_plan
from flashvl_kernels.cuda.device import Device
from flashvl_kernels.cuda.flash_plan import Operand
from flashvl_kernels.cuda.launch import Instance, Launch, Prepared, address, ceil_div

ROWS = 16
"""Query heads of a KV head that one block takes: kDecodeRows."""
THREADS = 128
MAX_SPLITS = 64
"""The last block reads what all left, eight splits at a time."""
BLOCKS_A_MULTIPROCESSOR = 2


@dataclass(frozen=True)
class DecodePlan:
    """splits: of each sequence's keys. row_blocks: of the query heads of a KV head."""

    splits: int
    row_blocks: int
    grid: tuple[int, int]


def keys_a_step(dim: int, itemsize: int) -> int:
    """What a block takes in at a time: four warps their own keys, in fp32 all the same."""
    if itemsize == 2:
        return 4 * (32 if dim <= 80 else 16)
    return 32 if dim <= 128 else 16


def shared_bytes(dim: int, itemsize: int) -> int:
    """Of a block: queries and keys of each team, which the merge of the teams takes over."""
    if itemsize == 4:
        return flash_plan.fma_shape(dim, 1).shared_bytes
    return 4 * ROWS * dim * 2 + 2 * keys_a_step(dim, 2) * dim * 2


def plan(
    sequences: int, capacity: int, heads: int, kv_heads: int, step: int, device: Device
) -> DecodePlan:
    """The launch over a cache of `capacity` positions, `step` keys at a time.

    As many splits as make two blocks a multiprocessor. The lengths are on the device: a block
    works out its share of the keys that are there, and one without any ends at once.
    """
    row_blocks = ceil_div(heads // kv_heads, ROWS)
    tasks = sequences * kv_heads * row_blocks
    wanted = ceil_div(BLOCKS_A_MULTIPROCESSOR * device.multiprocessors, tasks)
    splits = max(1, min(wanted, ceil_div(capacity, step), MAX_SPLITS))
    return DecodePlan(splits, row_blocks, (splits * sequences, kv_heads * row_blocks))


class DecodeAttentionArgs(ctypes.Structure):
    """DecodeAttentionArgs<T> of csrc/cuda/decode_attention.cuh."""

    _fields_ = (
        *((name, Operand) for name in ("q", "k", "v")),
        *((name, ctypes.c_void_p) for name in ("out", "lengths", "partial", "softmax", "counters")),
        *(
            (name, ctypes.c_int64)
            for name in ("kv_heads", "group", "channels", "splits", "out_wide")
        ),
        ("scale", ctypes.c_float),
    )


def instances() -> list[Instance]:
    """The kernels to build."""
    return flash_plan.instances("decode_attention", "DecodeAttentionArgs")


def prepare(flat: tuple[Any, ...], device: Device) -> Prepared:
    """A call on schema arguments."""
    q, k_cache, v_cache, lengths, scale = flat
    out = q.new_empty(q.shape)
    if q.numel() == 0:
        return Prepared((out,), (), {}, frozenset())
    sequences, heads, channels = q.shape
    kv_heads, capacity = k_cache.shape[1:3]
    dim = flash_plan.padded(channels, q.element_size())
    chosen = plan(sequences, capacity, heads, kv_heads, keys_a_step(dim, q.element_size()), device)
    lengths = lengths.contiguous()
    tensors = {"q": q, "k_cache": k_cache, "v_cache": v_cache, "lengths": lengths, "out": out}
    if chosen.splits > 1:
        tasks = sequences * chosen.grid[1]
        rows = tasks * chosen.splits * ROWS
        tensors["partial"] = torch.empty(rows, dim, dtype=torch.float32, device=q.device)
        tensors["softmax"] = torch.empty(rows, 2, dtype=torch.float32, device=q.device)
        tensors["counters"] = torch.zeros(tasks, dtype=torch.int32, device=q.device)
    arguments = DecodeAttentionArgs(
        flash_plan.operand(q, 0, None, 1),
        flash_plan.operand(k_cache, 0, 2, 1),
        flash_plan.operand(v_cache, 0, 2, 1),
        address(out),
        address(lengths),
        *(address(tensors.get(name)) for name in ("partial", "softmax", "counters")),
        kv_heads,
        heads // kv_heads,
        channels,
        chosen.splits,
        flash_plan.is_wide(out),
        flash_plan.scale_of(scale, channels),
    )
    launch = Launch(
        flash_plan.instance("decode_attention", "DecodeAttentionArgs", q.dtype, dim),
        (*chosen.grid, 1),
        (THREADS, 1, 1),
        arguments,
        shared_bytes(dim, q.element_size()),
    )
    written = frozenset(("out", "partial", "softmax", "counters"))
    return Prepared((out,), (launch,), tensors, written)
