"""Launch plan of causal_attention (csrc/cuda/causal_attention.cuh): a block of rows a KV head."""

from __future__ import annotations

import ctypes
from typing import Any

from flashvl_kernels.cuda import flash_plan
from flashvl_kernels.cuda.device import Device
from flashvl_kernels.cuda.flash_plan import FlashShape, Operand
from flashvl_kernels.cuda.launch import Instance, Launch, Prepared, Size3, address, ceil_div


class CausalAttentionArgs(ctypes.Structure):
    """CausalAttentionArgs<T> of csrc/cuda/causal_attention.cuh."""

    _fields_ = (
        *((name, Operand) for name in ("q", "k", "v")),
        ("out", ctypes.c_void_p),
        ("lengths", ctypes.c_void_p),
        *(
            (name, ctypes.c_int64)
            for name in ("sequences", "queries", "kv_heads", "group", "channels", "out_wide")
        ),
        ("scale", ctypes.c_float),
    )


def plan(sequences: int, queries: int, heads: int, kv_heads: int, shape: FlashShape) -> Size3:
    """The grid: the rows of a block are queries times the heads that share a KV head."""
    return ceil_div(queries * (heads // kv_heads), shape.rows) * sequences, kv_heads, 1


def instances() -> list[Instance]:
    """The kernels to build."""
    return flash_plan.instances("causal_attention", "CausalAttentionArgs")


def prepare(flat: tuple[Any, ...], device: Device) -> Prepared:
    """A call on schema arguments."""
    q, k_cache, v_cache, lengths, scale = flat
    out = q.new_empty(q.shape)
    if q.numel() == 0:
        return Prepared((out,), (), {}, frozenset())
    sequences, queries, heads, channels = q.shape
    kv_heads = k_cache.shape[1]
    dim = flash_plan.padded(channels, q.element_size())
    shape = flash_plan.shape_of(dim, q.element_size())
    lengths = lengths.contiguous()
    tensors = {"q": q, "k_cache": k_cache, "v_cache": v_cache, "lengths": lengths, "out": out}
    arguments = CausalAttentionArgs(
        flash_plan.operand(q, 0, 1, 2),
        flash_plan.operand(k_cache, 0, 2, 1),
        flash_plan.operand(v_cache, 0, 2, 1),
        address(out),
        address(lengths),
        sequences,
        queries,
        kv_heads,
        heads // kv_heads,
        channels,
        flash_plan.is_wide(out),
        flash_plan.scale_of(scale, channels),
    )
    launch = Launch(
        flash_plan.instance("causal_attention", "CausalAttentionArgs", q.dtype, dim),
        plan(sequences, queries, heads, kv_heads, shape),
        (shape.threads, 1, 1),
        arguments,
        shape.shared_bytes,
    )
    return Prepared((out,), (launch,), tensors, frozenset(("out",)))
