"""Attention of one query a sequence, its keys split over several programs.

One program reads a share of one KV head's keys for all query heads on it, the rows of one product
(flash.py has the loop over keys); a second kernel weighs the shares by their largest scores, in a
fixed order (Flash-Decoding: Dao et al., 2023; FlashInfer, arXiv 2501.01005). A share is a part of
the sequence's own length, which only the device knows, so that short sequences in a long cache
still use every program. Bound by bytes: the cache is read once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from flashvl_kernels.triton import flash, launch, tuned
from flashvl_kernels.triton.dispatch import queue
from flashvl_kernels.triton.expect import Expect
from flashvl_kernels.triton.flash import attend, read_rows, weighted, write_rows
from flashvl_kernels.triton.launch import Device

MOST_SHARES = 64
"""Shares that the second kernel weighs at once: 64 x 128 fp32 values, 64 registers a thread."""

EXPECT = {
    "decode_attention_kernel": Expect(wide_access=True, narrow=3, tensor_cores=True),
    "join_shares_kernel": Expect(),
}


@triton.jit
def decode_attention_kernel(
    q, k, v, lengths, y, tops, totals,
    kv_heads, group, blocks, shares, scale,
    q_batch, q_head, q_channel,
    k_batch, k_head, k_token, k_channel,
    v_batch, v_head, v_token, v_channel,
    UNIT: tl.constexpr, D: tl.constexpr, HEAD: tl.constexpr, TAIL: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, SPLIT: tl.constexpr,
):  # type: ignore[no-untyped-def] # fmt: skip
    """y [batch, kv_heads * group, D]; under SPLIT, y [batch, kv_heads * group, shares, D], tops and
    totals [batch, kv_heads * group, shares] in fp32: each share's mean and what it weighs."""
    program = tl.program_id(0).to(tl.int64)
    share = program % shares
    part = program // shares % blocks
    kv_head = program // shares // blocks % kv_heads
    batch = program // shares // blocks // kv_heads
    length = tl.load(lengths + batch)
    each = tl.cdiv(tl.cdiv(length, KEYS), shares) * KEYS
    first = tl.minimum(share * each, length).to(tl.int32)
    last = tl.minimum((share + 1) * each, length).to(tl.int32)

    row = part * ROWS + tl.arange(0, ROWS)
    inside = row < group
    head = kv_head * group + row
    top, total, acc, acc_tail = attend(
        q + batch * q_batch * UNIT, head, q_head, q_channel, inside,
        k + batch * k_batch * UNIT + kv_head * k_head * UNIT, k_token, k_channel,
        v + batch * v_batch * UNIT + kv_head * v_head * UNIT, v_token, v_channel,
        first, last, tl.full([ROWS], last, tl.int32), scale,
        UNIT, D, HEAD, TAIL, ROWS, KEYS,
    )  # fmt: skip
    place = batch * kv_heads * group + head
    if SPLIT:
        place = place * shares + share
        tl.store(tops + place, top * scale, inside)
        tl.store(totals + place, total, inside)
    write_rows(y, place, D, weighted(acc, total).to(y.dtype.element_ty), inside, 0, HEAD, D)
    if TAIL:
        out_tail = weighted(acc_tail, total).to(y.dtype.element_ty)
        write_rows(y, place, D, out_tail, inside, HEAD, TAIL, D)


@triton.jit
def join_shares_kernel(
    partial, tops, totals, y, shares,
    SHARES: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr,
):  # type: ignore[no-untyped-def] # fmt: skip
    """y [rows, D]: the mean of partial [rows, shares, D], a program for each row."""
    row = tl.program_id(0).to(tl.int64)
    share = tl.arange(0, SHARES)
    there = share < shares
    top = tl.load(tops + row * shares + share, there, float("-inf"))
    total = tl.load(totals + row * shares + share, there, 0.0)
    highest = tl.max(top, 0)
    level = tl.where(highest == float("-inf"), 0.0, highest)
    # A share that saw nothing counts nothing, whatever else happened to the row.
    weight = tl.where(total == 0.0, 0.0, total * tl.exp2(top - level))
    values = read_rows(
        partial + row * shares * D, share.to(tl.int64), D, 1, there, 1, 0, WIDTH, D, False
    )
    mean = tl.sum(values * weight[:, None], 0)
    whole = tl.sum(weight, 0)
    # A GPU's own division errs by two units, its correctly rounded one by half of one.
    mean = tl.div_rn(mean, tl.zeros_like(mean) + tl.where(whole == 0.0, 1.0, whole))
    channel = tl.arange(0, WIDTH)
    tl.store(y + row * D + channel, mean.to(y.dtype.element_ty), channel < D)


def shares_of(programs: int, capacity: int, keys: int, device: Device) -> int:
    """Into how many shares the keys of `programs` problems are split.

    Two programs a processor keep the memory busy; a share below 4 blocks of keys would spend more
    on writing and reading its result than on its keys.
    """
    wanted = launch.ceil_div(2 * device.multiprocessors, programs)
    return max(min(wanted, capacity // (4 * keys), MOST_SHARES), 1)


def why_not(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor, scale: float | None
) -> str | None:
    """A head's results stay in registers."""
    return flash.why_not(q)


def run(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor, scale: float | None
) -> Tensor:
    """Each query over the keys of its sequence, shaped like q [B, H, D]."""
    y = q.new_empty(q.shape)
    if y.numel() == 0:
        return y
    batch, heads, head_dim = q.shape
    q, factor = flash.scaled(q, scale)
    kv_heads, capacity = k_cache.shape[1:3]
    group = heads // kv_heads
    device = launch.describe(q.device)
    shape = tuned.choose(
        "decode_attention_kernel", flash.block,
        group, batch * kv_heads, head_dim, q.element_size(), device,
    )  # fmt: skip
    blocks = launch.ceil_div(group, shape.rows)
    programs = batch * kv_heads * blocks
    shares = shares_of(programs, capacity, shape.keys, device)
    unit = launch.unit_of(q, k_cache, v_cache)
    strides = [n for t in (q, k_cache, v_cache) for n in launch.strides_of(t, unit)]
    head, tail = flash.split(head_dim, q.element_size())
    partial, tops, totals = y, y, y
    if shares > 1:
        partial = q.new_empty((batch, heads, shares, head_dim), dtype=torch.float32)
        tops, totals = q.new_empty((2, batch, heads, shares), dtype=torch.float32).unbind()
    with launch.on(q):
        queue(
            decode_attention_kernel, (programs * shares,),
            q, k_cache, v_cache, lengths.contiguous(), partial, tops, totals,
            kv_heads, group, blocks, shares, factor, *strides,
            UNIT=unit, D=head_dim, HEAD=head, TAIL=tail, ROWS=shape.rows, KEYS=shape.keys,
            SPLIT=shares > 1, num_warps=shape.warps, num_stages=shape.stages,
        )  # fmt: skip
        if shares > 1:
            queue(
                join_shares_kernel, (batch * heads,),
                partial, tops, totals, y, shares, SHARES=launch.power_of_two(shares),
                D=head_dim, WIDTH=launch.power_of_two(head_dim), num_warps=4,
            )  # fmt: skip
    return y
