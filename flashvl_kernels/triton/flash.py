"""Attention over the keys of one head, a block at a time: what the four attention kernels share.

No score reaches memory: a block of rows keeps the largest score so far, the sum of its weights and
its weighted values in registers, and rescales them when a larger score comes (online softmax:
Milakov and Gimelshein, arXiv 1805.02867; FlashAttention: Dao et al., arXiv 2205.14135). Weights go
into the second product in the dtype of the values, as in FlashAttention-2 (arXiv 2307.08691).

A head dimension is two powers of two, of which only the second has a mask: 72 = 64 + 16 costs 80
columns of a product, where one power of two would cost 128.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from flashvl_kernels.triton.launch import Device, power_of_two

LOG2_E = 1.4426950408889634
WIDEST = 256
"""The widest head whose rows of results still fit into registers beside their scores."""


@dataclass(frozen=True)
class Block:
    """Rows and keys of one step, warps to do it, and steps of keys under way to shared memory."""

    rows: int
    keys: int
    warps: int
    stages: int


def split(head_dim: int, itemsize: int) -> tuple[int, int]:
    """The two widths that hold a head: a power of two, and the one of at least 16 (or 0) for what
    is left. 72 is 64 + 16, 128 is 128 + 0, 7 is 16 + 0. In fp32, where a product holds its operands
    in registers, 128 is 64 + 64."""
    head = power_of_two(head_dim + 1) // 2 if head_dim >= 16 else 16
    if itemsize == 4 and head > 64 and head == head_dim:
        head //= 2
    left = max(head_dim - head, 0)
    return head, max(power_of_two(left), 16) if left else 0


def block(rows: int, heads: int, head_dim: int, itemsize: int, device: Device) -> Block:
    """The block for `heads` problems of up to `rows` rows each; what it holds must not spill.

    128 rows read each key from shared memory half as often as 64, but only where enough programs
    are left for every processor; short calls take the least that holds their rows. On an H100 the
    two programs of 64 rows beside each other were as fast at 128 channels, and up to 1.35 times as
    fast below (`tune`), so that Hopper never takes 128. wgmma and tcgen05 read keys and values from
    shared memory, 64 at a time; mma.sync and AMD's read them from registers, which 64 overflow
    (sm_120 spilled 72 bytes a thread at 72 channels), and so do 128 rows of 128 channels. tcgen05
    results of 64 such rows need 8 warps to be rescaled (4 spilled 120 bytes); 128, the rows of its
    instruction, take 206 registers of 8 warps, where ptxas gave 64 only 128 and spilled 24 bytes.
    Exact fp32 products run outside the tensor cores: small blocks.

    At 128 channels a thread of 4 warps holds 64 registers of results, 32 of scores or of their
    weights, with mma.sync 32 of q, and up to 32 of addresses of keys and values on their way:
    ptxas takes 254 of 255 and spills none.
    """
    width = sum(split(head_dim, itemsize))
    short = min(max(power_of_two(rows), 16), 128)
    if itemsize == 4:
        if width > 128:
            return Block(16, 16, 4, 1)
        return Block(min(short, 32), 32, 8 if width > 80 else 4, 1)
    hopper, blackwell = device.capability == 90, 100 <= device.capability < 120
    fits = width <= (128 if hopper or blackwell else 80)
    enough = heads * -(-rows // 128) >= device.multiprocessors and not hopper
    taken = min(short, 128 if fits and enough else 64)
    keys = 64 if (hopper or blackwell) and width <= 128 else 32
    eight = taken == 128 or (blackwell and width > 80)
    return Block(taken, keys, 8 if eight else 4, 3 if hopper or blackwell else 2)


def why_not(q: Tensor) -> str | None:
    """The results of a row stay in registers."""
    if q.shape[-1] > WIDEST:
        return f"heads have {q.shape[-1]} channels; the triton kernel takes up to {WIDEST}"
    return None


def scaled(q: Tensor, scale: float | None) -> tuple[Tensor, float]:
    """q, and what takes q k^T to powers of two, which the hardware has an instruction for: above 0,
    so that the largest score is the largest before it is scaled, too. Its sign goes into q."""
    if scale is None:
        return q, q.shape[-1] ** -0.5 * LOG2_E
    if scale <= 0:
        q, scale = (-q, -scale) if scale else (q * 0, 1.0)
    return q, scale * LOG2_E


@triton.jit
def read_rows(
    base, row, row_stride, stride, seen,
    UNIT: tl.constexpr, FIRST: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr,
    ALL: tl.constexpr,
):  # type: ignore[no-untyped-def] # fmt: skip
    """Channels FIRST to FIRST + WIDTH of some rows, zeros past D and, unless ALL, where not `seen`.

    row: int64. row_stride: in units of UNIT elements, multiplied last so that 64 bits hold it.
    """
    column = FIRST + tl.arange(0, WIDTH)[None, :].to(tl.int64)
    at = base + row[:, None] * row_stride * UNIT + column * stride
    if FIRST + WIDTH <= D:
        if ALL:
            return tl.load(at)
        return tl.load(at, seen[:, None], 0.0)
    if ALL:
        return tl.load(at, column < D, 0.0)
    return tl.load(at, seen[:, None] & (column < D), 0.0)


@triton.jit
def write_rows(
    base, row, row_stride, values, seen,
    FIRST: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr,
):  # type: ignore[no-untyped-def] # fmt: skip
    """Channels FIRST to FIRST + WIDTH of rows whose channels lie side by side."""
    column = FIRST + tl.arange(0, WIDTH)[None, :]
    inside = seen[:, None] & (column < D)
    tl.store(base + row[:, None] * row_stride + column, values, inside)


@triton.jit
def sweep(
    q, q_tail, top, total, acc, acc_tail,
    k, k_token, k_channel, v, v_token, v_channel,
    first, last, keys, limit, scale,
    UNIT: tl.constexpr, D: tl.constexpr, HEAD: tl.constexpr, TAIL: tl.constexpr, KEYS: tl.constexpr,
    ALL: tl.constexpr,
):  # type: ignore[no-untyped-def] # fmt: skip
    """The state of the rows after keys `first` to `last`, of which row r sees those below
    limit[r] <= keys; all of them where ALL. `scale` > 0 takes the scores to powers of two, in the
    multiply-add that subtracts the largest: a score costs a largest, that, a power and two sums.

    top: the largest score so far, without `scale`. total: the sum of weights. acc: the weighted
    values.
    """
    for start in range(first, last, KEYS):
        seen = start + tl.arange(0, KEYS)
        there = seen < keys
        key = seen.to(tl.int64)
        k_head = read_rows(k, key, k_token, k_channel, there, UNIT, 0, HEAD, D, ALL)
        scores = tl.dot(q, tl.trans(k_head), input_precision="ieee")
        if TAIL:
            k_tail = read_rows(k, key, k_token, k_channel, there, UNIT, HEAD, TAIL, D, ALL)
            scores = tl.dot(q_tail, tl.trans(k_tail), scores, input_precision="ieee")
        if not ALL:
            scores = tl.where(seen[None, :] < limit[:, None], scores, float("-inf"))

        higher = tl.maximum(top, tl.max(scores, 1))
        # As long as a row has seen nothing above -inf, its weights are 0, not exp(-inf + inf).
        level = tl.where(higher == float("-inf"), 0.0, higher) * scale
        weights = tl.exp2(scores * scale - level[:, None])
        fade = tl.exp2(top * scale - level)
        total = total * fade + tl.sum(weights, 1)
        top = higher
        weights = weights.to(q.dtype)
        v_head = read_rows(v, key, v_token, v_channel, there, UNIT, 0, HEAD, D, ALL)
        acc = tl.dot(weights, v_head, acc * fade[:, None], input_precision="ieee")
        if TAIL:
            v_tail = read_rows(v, key, v_token, v_channel, there, UNIT, HEAD, TAIL, D, ALL)
            acc_tail = tl.dot(weights, v_tail, acc_tail * fade[:, None], input_precision="ieee")
    return top, total, acc, acc_tail


@triton.jit
def attend(
    q, q_row, q_token, q_channel, inside,
    k, k_token, k_channel, v, v_token, v_channel,
    first, keys, limit, scale,
    UNIT: tl.constexpr, D: tl.constexpr, HEAD: tl.constexpr, TAIL: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # type: ignore[no-untyped-def] # fmt: skip
    """The state of ROWS rows of q after keys `first` to `keys`; see `sweep`.

    q_row: int64 places of the rows, read where `inside`. limit: keys that a row sees, up to `keys`;
    0 or less where it sees none. Only the last blocks, that some row does not see whole, are
    masked.
    """
    q_head = read_rows(q, q_row, q_token, q_channel, inside, UNIT, 0, HEAD, D, False)
    q_tail = q_head
    acc = tl.zeros([ROWS, HEAD], tl.float32)
    acc_tail = acc
    if TAIL:
        q_tail = read_rows(q, q_row, q_token, q_channel, inside, UNIT, HEAD, TAIL, D, False)
        acc_tail = tl.zeros([ROWS, TAIL], tl.float32)
    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    seen_by_all = tl.maximum(tl.min(tl.where(inside, limit, keys), 0) - first, 0)
    whole = first + seen_by_all // KEYS * KEYS
    top, total, acc, acc_tail = sweep(
        q_head, q_tail, top, total, acc, acc_tail,
        k, k_token, k_channel, v, v_token, v_channel,
        first, whole, keys, limit, scale, UNIT, D, HEAD, TAIL, KEYS, True,
    )  # fmt: skip
    return sweep(
        q_head, q_tail, top, total, acc, acc_tail,
        k, k_token, k_channel, v, v_token, v_channel,
        whole, keys, keys, limit, scale, UNIT, D, HEAD, TAIL, KEYS, False,
    )  # fmt: skip


@triton.jit
def weighted(acc, total):  # type: ignore[no-untyped-def]
    """The values' weighted mean; zeros for a row that saw nothing."""
    # A GPU's own division errs by two units.
    return (
        acc
        * tl.div_rn(tl.full(total.shape, 1.0, tl.float32), tl.where(total == 0.0, 1.0, total))[
            :, None
        ]
    )
