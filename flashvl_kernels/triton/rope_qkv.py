"""Queries, keys and values split out of a fused projection and rotated, in one pass.

One program takes a few heads, of any rows: both halves of a head, its cos and sin, and the place it
goes to. Keys and values go into a cache of any strides; without one, into tensors that are
described as a cache of one sequence (Su et al., arXiv 2104.09864, in the half-split layout of
GPT-NeoX, Llama and Qwen2). Bound by bytes: 3 FLOPs an element; the tables stay in the L2, for all
heads of a row read the same. Rotated in fp32 and rounded once.

Half a head and the strides are counted in vectors (`launch.unit_of`): 16 divides neither 36 nor 40,
the halves of heads of 72 and 80, which Triton would move channel by channel.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from flashvl_kernels.triton import launch, tuned
from flashvl_kernels.triton.dispatch import queue
from flashvl_kernels.triton.expect import Expect
from flashvl_kernels.triton.launch import Device, Tile

WIDEST = 2048
"""Channels of half a head, 16 times the usual: 16 a thread in each of its four fp32 rows."""

# The position of a row, where there are any.
EXPECT = {"rope_qkv_kernel": Expect(wide_access=True, narrow=1)}
BIT_EQUAL = 0.99
"""Least share of a bf16 result that is bit-equal to the reference, which rounds where this does."""


@triton.jit
def rope_qkv_kernel(
    qkv, cos, sin, positions, slots, q, k, v,
    units, heads, kv_heads, half_vectors, table_rows, sequences, capacity,
    row_stride, stride, cos_stride, cos_channel_stride, sin_stride, sin_channel_stride,
    positions_stride, slots_stride,
    k_sequence_stride, k_head_stride, k_stride, k_channel_stride,
    v_sequence_stride, v_head_stride, v_stride, v_channel_stride,
    POSITIONS: tl.constexpr, SLOTS: tl.constexpr, VECTOR: tl.constexpr, UNITS: tl.constexpr,
    HALF: tl.constexpr,
):  # type: ignore[no-untyped-def] # fmt: skip
    """A unit is one head of one row. q [rows, heads, 2 half]; k and v [sequences, kv_heads,
    capacity, 2 half], written at slots, or at the row's own number without SLOTS. half_vectors and
    the strides count VECTOR elements, but for those of channels, positions and slots."""
    half = half_vectors * VECTOR
    unit = tl.program_id(0).to(tl.int64) * UNITS + tl.arange(0, UNITS)
    channel = tl.arange(0, HALF)[None, :].to(tl.int64)
    # One load a head, before the axis of channels joins: a thread would repeat it for each of its.
    position = unit // (heads + 2 * kv_heads)
    slot = position
    if POSITIONS:
        position = tl.load(positions + position * positions_stride, unit < units, -1)
    if SLOTS:
        slot = tl.load(slots + slot * slots_stride, unit < units, -1)
    position, slot, unit = position[:, None], slot[:, None], unit[:, None]
    row, head = unit // (heads + 2 * kv_heads), unit % (heads + 2 * kv_heads)
    inside = (unit < units) & (channel < half)
    rotated = head < heads + kv_heads

    source = qkv + row * row_stride * VECTOR + (head * 2 * half + channel) * stride
    left = tl.load(source, inside, 0.0).to(tl.float32)
    right = tl.load(source + half * stride, inside, 0.0).to(tl.float32)
    turned = inside & rotated & (position >= 0) & (position < table_rows)
    cos_at = cos + position * cos_stride * VECTOR + channel * cos_channel_stride
    sin_at = sin + position * sin_stride * VECTOR + channel * sin_channel_stride
    c = tl.load(cos_at, turned, 0.0).to(tl.float32)
    s = tl.load(sin_at, turned, 0.0).to(tl.float32)
    low = tl.where(rotated, left * c - right * s, left).to(q.dtype.element_ty)
    high = tl.where(rotated, right * c + left * s, right).to(q.dtype.element_ty)

    query = inside & (head < heads)
    q_at = q + (row * heads + head) * 2 * half + channel
    tl.store(q_at, low, query)
    tl.store(q_at + half, high, query)

    kept = inside & (slot >= 0) & (slot < sequences * capacity)
    reserved = tl.maximum(capacity, 1)
    sequence, place = slot // reserved, slot % reserved
    key = kept & (head >= heads) & rotated
    k_at = sequence * k_sequence_stride + (head - heads) * k_head_stride + place * k_stride
    k_at = k + k_at * VECTOR + channel * k_channel_stride
    tl.store(k_at, low, key)
    tl.store(k_at + half * k_channel_stride, high, key)
    value = kept & (rotated == 0)
    v_head = head - heads - kv_heads
    v_at = sequence * v_sequence_stride + v_head * v_head_stride + place * v_stride
    v_at = v + v_at * VECTOR + channel * v_channel_stride
    tl.store(v_at, low, value)
    tl.store(v_at + half * v_channel_stride, high, value)


def why_not(
    qkv: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None, heads: int, kv_heads: int
) -> str | None:
    """The kernel keeps half a head in a tile."""
    if cos.shape[1] > WIDEST:
        return f"heads have {2 * cos.shape[1]} channels; the triton kernel takes up to {2 * WIDEST}"
    return None


def tile(units: int, half: int, itemsize: int, device: Device) -> Tile:
    """`launch.tile`, both halves of a head being its bytes; but no warp has less than a full access
    a thread, so that a decode step runs on 4 programs of whole vectors, not on 16 of 4 bytes."""
    shape = launch.tile(units, half, 2 * itemsize, device, widest=WIDEST)
    least = device.warp * launch.VECTOR_BYTES // itemsize // shape.columns
    return Tile(max(shape.rows, least), shape.columns, shape.warps)


def rotate(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor | None,
    heads: int,
    k: Tensor,
    v: Tensor,
    slots: Tensor | None,
) -> Tensor:
    """q [N, heads, D]; keys and values written into k and v [B, Hkv, S, D]."""
    (rows, width), half, kv_heads = qkv.shape, cos.shape[1], k.shape[1]
    q = qkv.new_empty(rows, heads, 2 * half)
    if rows == 0:
        return q
    units = width // (2 * half) * rows
    # Both halves of a head count as its bytes.
    device = launch.describe(qkv.device)
    shape = tuned.choose("rope_qkv_kernel", tile, units, half, qkv.element_size(), device)
    vector = launch.unit_of(qkv, cos, sin, k, v, length=half)
    strides = [launch.strides_of(tensor, vector) for tensor in (qkv, cos, sin, k, v)]
    with launch.on(qkv):
        queue(
            rope_qkv_kernel, (launch.ceil_div(units, shape.rows),),
            qkv, cos, sin, cos if positions is None else positions,
            cos if slots is None else slots, q, k, v,
            units, heads, kv_heads, half // vector, cos.shape[0], k.shape[0], k.shape[2],
            *strides[0], *strides[1], *strides[2],
            0 if positions is None else positions.stride(0),
            0 if slots is None else slots.stride(0), *strides[3], *strides[4],
            POSITIONS=positions is not None, SLOTS=slots is not None, VECTOR=vector,
            UNITS=shape.rows, HALF=shape.columns, num_warps=shape.warps,
        )  # fmt: skip
    return q


def run(
    qkv: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None, heads: int, kv_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """q [N, heads, D], k and v [N, kv_heads, D]."""
    k, v = (qkv.new_empty(qkv.shape[0], kv_heads, 2 * cos.shape[1]) for _ in range(2))
    # One sequence whose positions are the rows: [1, kv_heads, N, D].
    k_cache, v_cache = (each.transpose(0, 1).unsqueeze(0) for each in (k, v))
    return rotate(qkv, cos, sin, positions, heads, k_cache, v_cache, None), k, v
