"""Launch plan of tile_attention (csrc/cuda/tile_attention.cuh): a block a head and rows of it."""

from __future__ import annotations

import ctypes
from typing import Any

from flashvl_kernels.cuda import flash_plan
from flashvl_kernels.cuda.device import Device
from flashvl_kernels.cuda.flash_plan import FlashShape, Operand
from flashvl_kernels.cuda.launch import Instance, Launch, Prepared, Size3, address, ceil_div


class TileAttentionArgs(ctypes.Structure):
    """TileAttentionArgs<T> of csrc/cuda/tile_attention.cuh."""

    _fields_ = (
        *((name, Operand) for name in ("q", "k", "v")),
        ("out", ctypes.c_void_p),
        ("lengths", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("tiles", "tokens", "heads", "channels", "out_wide")),
        ("scale", ctypes.c_float),
    )


def plan(tiles: int, tokens: int, heads: int, packed: bool, shape: FlashShape) -> Size3:
    """The grid; `tokens` of a tile, or of all where they are packed.

    Lengths are on the device and not waited for: packed tiles get the blocks they need at worst,
    one broken block each, and what is too much ends at once.
    """
    if packed:
        return min(ceil_div(tokens, shape.rows) + tiles, tokens), heads, 1
    return ceil_div(tokens, shape.rows) * tiles, heads, 1


def instances() -> list[Instance]:
    """The kernels to build."""
    return flash_plan.instances("tile_attention", "TileAttentionArgs")


def prepare(flat: tuple[Any, ...], device: Device) -> Prepared:
    """A call on schema arguments."""
    q, k, v, lengths, scale = flat
    out = q.new_empty(q.shape)
    if q.numel() == 0:
        return Prepared((out,), (), {}, frozenset())
    packed = lengths is not None
    heads, channels = q.shape[-2:]
    tiles = lengths.shape[0] if packed else q.shape[0]
    tokens = q.shape[-3]
    batch = None if packed else 0
    dim = flash_plan.padded(channels, q.element_size())
    shape = flash_plan.shape_of(dim, q.element_size())
    tensors = {"q": q, "k": k, "v": v, "out": out}
    if packed:
        tensors["lengths"] = lengths.contiguous()
    arguments = TileAttentionArgs(
        *(flash_plan.operand(t, batch, q.dim() - 3, q.dim() - 2) for t in (q, k, v)),
        address(out),
        address(tensors.get("lengths")),
        tiles,
        tokens,
        heads,
        channels,
        flash_plan.is_wide(out),
        flash_plan.scale_of(scale, channels),
    )
    launch = Launch(
        flash_plan.instance("tile_attention", "TileAttentionArgs", q.dtype, dim),
        plan(tiles, tokens, heads, packed, shape),
        (shape.threads, 1, 1),
        arguments,
        shape.shared_bytes,
    )
    return Prepared((out,), (launch,), tensors, frozenset(("out",)))
