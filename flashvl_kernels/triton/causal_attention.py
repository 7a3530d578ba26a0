"""Causal attention over a KV cache: one program for a block of one KV head's rows.

Its rows are the pairs of a token and one of the query heads that share the KV head, so that a key
is read once for all of them and a chunk of a few tokens still fills a tensor core (flash.py has the
loop over keys; the packing is FlashAttention-3's, arXiv 2407.08608). A block stops at the last key
that its last row sees, and masks only from the first key that its first row does not see. Later
rows see more keys, so the last blocks start first and the short ones fill the tail. Bound by the
tensor cores in a prefill, by reading the cache in a short chunk.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from flashvl_kernels.triton import flash, launch, tuned
from flashvl_kernels.triton.dispatch import queue
from flashvl_kernels.triton.expect import Expect
from flashvl_kernels.triton.flash import attend, weighted, write_rows

EXPECT = {"causal_attention_kernel": Expect(tensor_cores=True)}


@triton.jit
def causal_attention_kernel(
    q, k, v, lengths, y,
    tokens, kv_heads, group, blocks, scale,
    q_batch, q_token, q_head, q_channel,
    k_batch, k_head, k_token, k_channel,
    v_batch, v_head, v_token, v_channel,
    UNIT: tl.constexpr, D: tl.constexpr, HEAD: tl.constexpr, TAIL: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # type: ignore[no-untyped-def] # fmt: skip
    """y [batch, tokens, kv_heads * group, D]; the keys of sequence b are the first lengths[b]."""
    program = tl.program_id(0).to(tl.int64)
    problems = tl.num_programs(0) // blocks
    kv_head = program % problems % kv_heads
    batch = program % problems // kv_heads
    part = blocks - 1 - program // problems
    length = tl.load(lengths + batch)

    row = part * ROWS + tl.arange(0, ROWS)
    token = row // group
    head = kv_head * group + row % group
    inside = token < tokens
    limit = tl.where(inside, length - tokens + token + 1, 0).to(tl.int32)
    last = tl.maximum(tl.max(limit, 0), 0)
    k += batch * k_batch * UNIT + kv_head * k_head * UNIT
    v += batch * v_batch * UNIT + kv_head * v_head * UNIT
    _top, total, acc, acc_tail = attend(
        q + batch * q_batch * UNIT, token * q_token + head * q_head, 1, q_channel, inside,
        k, k_token, k_channel, v, v_token, v_channel,
        0, last, limit, scale, UNIT, D, HEAD, TAIL, ROWS, KEYS,
    )  # fmt: skip
    heads = kv_heads * group
    y += batch * tokens * heads * D
    place = token * heads + head
    out = weighted(acc, total).to(y.dtype.element_ty)
    write_rows(y, place, D, out, inside, 0, HEAD, D)
    if TAIL:
        out_tail = weighted(acc_tail, total).to(y.dtype.element_ty)
        write_rows(y, place, D, out_tail, inside, HEAD, TAIL, D)


def why_not(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor, scale: float | None
) -> str | None:
    """A head's results stay in registers."""
    return flash.why_not(q)


def run(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor, scale: float | None
) -> Tensor:
    """Row i of sequence b over the keys up to lengths[b] - N + i, shaped like q [B, N, H, D]."""
    y = q.new_empty(q.shape)
    if y.numel() == 0:
        return y
    batch, tokens, heads, head_dim = q.shape
    q, factor = flash.scaled(q, scale)
    kv_heads = k_cache.shape[1]
    group = heads // kv_heads
    device = launch.describe(q.device)
    shape = tuned.choose(
        "causal_attention_kernel", flash.block,
        tokens * group, batch * kv_heads, head_dim, q.element_size(), device,
    )  # fmt: skip
    blocks = launch.ceil_div(tokens * group, shape.rows)
    unit = launch.unit_of(q, k_cache, v_cache)
    strides = [n for t in (q, k_cache, v_cache) for n in launch.strides_of(t, unit)]
    head, tail = flash.split(head_dim, q.element_size())
    with launch.on(q):
        queue(
            causal_attention_kernel, (blocks * batch * kv_heads,),
            q, k_cache, v_cache, lengths.contiguous(), y,
            tokens, kv_heads, group, blocks, factor, *strides,
            UNIT=unit, D=head_dim, HEAD=head, TAIL=tail, ROWS=shape.rows, KEYS=shape.keys,
            num_warps=shape.warps, num_stages=shape.stages,
        )  # fmt: skip
    return y
