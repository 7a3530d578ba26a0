"""What the attention ops share: one call of PyTorch's SDPA, runs of equal length, argument checks.

PyTorch's CPU kernel is a FlashAttention (Dao et al., arXiv 2205.14135): no S x S matrix of scores
reaches memory, and query heads that share a KV head read it in place. It multiplies masked keys by
zero, which leaves NaN a NaN; so the references slice the keys that count instead of masking the
others. A traced call (the backward of a compiled one) cannot know the lengths and masks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from flashvl_kernels import checks


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None,
    mask: Tensor | None = None,
    causal: bool = False,
) -> Tensor:
    """Attention of q [B, N, H, D] over k and v [B, Hkv, S, D]; returns [B, N, H, D], contiguous.

    mask: bool, broadcast to [B, H, N, S], True where a key counts. causal: row i sees keys 0 to i.
    """
    if q.numel() == 0 or k.shape[2] == 0:
        return zeros_from(q)
    if causal and scale is not None and scale <= 0:
        # PyTorch's CPU kernel scales its -inf for a hidden key too: a NaN for 0, +inf below.
        q, scale = (-q, -scale) if scale else (q * 0, 1.0)
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k,
        v,
        attn_mask=mask,
        is_causal=causal,
        scale=scale,
        # A symbolic comparison must become a plain bool here.
        enable_gqa=bool(q.shape[2] != k.shape[1]),
    )
    out = out.transpose(1, 2)
    return (_with_nan(out, q, k) if _may_hold_nan(q, k) else out).contiguous()


def _may_hold_nan(q: Tensor, k: Tensor) -> bool:
    """Some query, or the first key of some head, may be NaN; two sums decide."""
    if is_traced(q):
        return False  # only the backward is traced, and it does not use the result
    sums = (float(t.detach().sum()) for t in (q, k[:, :, 0]))
    return q.device.type == "cpu" and math.isnan(sum(sums))


def _with_nan(out: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """out with NaN in the rows all of whose scores are NaN.

    PyTorch's CPU kernel (torch 2.13, below float64) takes such a row for a fully masked one and
    returns zeros, which would hide a broken query or key projection. Every row sees key 0.
    """
    keys = k[:, :, 0].isnan().any(-1).repeat_interleave(q.shape[2] // k.shape[1], 1)
    lost = q.isnan().any(-1) | keys.unsqueeze(1)
    return out.masked_fill(lost.unsqueeze(-1), float("nan"))


def attend_causally(q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
    """Rows of q [B, N, H, D] right-aligned to the keys [B, Hkv, n, D]; zeros left of key 0."""
    rows, keys = q.shape[1], k.shape[2]
    padding = max(rows - keys, 0)
    seen = q[:, padding:]
    if padding == rows:
        return zeros_from(q)
    if rows - padding == 1:
        out = attend_one(seen[:, 0], k, v, scale)[:, None]
    elif rows - padding == keys:
        # At 1000 rows, letting SDPA skip the upper triangle takes 145 ms where a mask takes 195.
        out = attend(seen, k, v, scale, causal=True)
    else:
        ones = torch.ones(rows, keys, dtype=torch.bool, device=q.device)
        out = attend(seen, k, v, scale, mask=ones.tril_(keys - rows))
    return torch.cat((out.new_zeros(q[:, :padding].shape), out), 1) if padding else out


def attend_one(q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
    """One query a sequence, q [B, H, D], over all of k and v [B, Hkv, n, D]; returns [B, H, D].

    The query heads of a KV head go in as so many rows of one head: a matrix product instead of
    several matrix-vector ones (bf16, 12 heads on 2, 2000 keys: 0.84 ms instead of 7.3).
    """
    kv_heads = k.shape[1]
    grouped = q.unflatten(1, (kv_heads, q.shape[1] // kv_heads)).transpose(1, 2)
    return attend(grouped, k, v, scale).transpose(1, 2).reshape(q.shape)


def zeros_from(q: Tensor) -> Tensor:
    """Zeros shaped like q that autograd can follow back to q."""
    everywhere = torch.ones((), dtype=torch.bool, device=q.device)
    return q.masked_fill(everywhere, 0).clone(memory_format=torch.contiguous_format)


def attend_masked(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, scale: float | None) -> Tensor:
    """`attend_causally` for sequences of lengths [B] unknown while tracing: zeros, then a mask."""
    keys = torch.arange(k.shape[2], device=q.device)
    rows = lengths[:, None] - q.shape[1] + torch.arange(q.shape[1], device=q.device)
    padding = (rows < 0)[:, :, None, None]
    unwritten = (keys >= lengths[:, None])[:, None, :, None]
    out = attend(
        q.masked_fill(padding, 0),
        k.masked_fill(unwritten, 0),
        v.masked_fill(unwritten, 0),
        scale,
        mask=((keys <= rows[:, :, None]) | padding[..., 0])[:, None],
    )
    return out.masked_fill(padding, 0)


def runs(lengths: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Neighbours of equal length: (first index, past the last, length), one SDPA call each."""
    start = 0
    for length, group in groupby(lengths):
        stop = start + sum(1 for _ in group)
        yield start, stop, length
        start = stop


def is_traced(tensor: Tensor) -> bool:
    """`tensor` has no values yet: it is fake, functional or proxied."""
    return type(tensor) is not Tensor


def check_heads(op: str, q: Tensor, scale: float | None) -> None:
    """q [..., H, D] is a float tensor with a head dimension, and `scale` is finite."""
    checks.is_float(op, "q", q)
    if q.shape[-1] == 0:
        checks.fail(op, "q", f"has shape {list(q.shape)}", "a head dimension above 0", "Check D.")
    if scale is not None and not float("-inf") < scale < float("inf"):
        checks.fail(
            op, "scale", f"is {scale}", "a finite number", "Leave it out for head_dim ** -0.5."
        )


def check_cache(op: str, q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor) -> None:
    """k_cache and v_cache [B, Hkv, S, D] and lengths [B] fit q [B, ..., H, D]."""
    batch, heads, head_dim = q.shape[0], q.shape[-2], q.shape[-1]
    checks.rank(op, "k_cache", k_cache, "[B, Hkv, S, D]")
    kv_heads, capacity = k_cache.shape[1], k_cache.shape[2]
    needed = [batch, kv_heads, capacity, head_dim]
    checks.shape(op, "k_cache", k_cache, needed, "the batch and head dimension of q")
    checks.shape(op, "v_cache", v_cache, needed, "the shape of k_cache")
    if kv_heads == 0 or heads % kv_heads:
        checks.fail(
            op,
            "k_cache",
            f"has {kv_heads} KV heads for {heads} query heads",
            "a number of KV heads that divides the query heads",
            "Check the order of the cache's axes: [B, Hkv, S, D].",
        )
    checks.same_dtype(op, "k_cache", k_cache, q, "q")
    checks.same_dtype(op, "v_cache", v_cache, q, "q")
    check_lengths(op, lengths, batch, "the batch of q", q)


def cuda_reason(q: Tensor, *_: Any) -> str | None:
    """Why the CUDA kernels of attention do not take a call; None where they do."""
    if q.shape[-1] > 256:
        return f"heads have {q.shape[-1]} channels; the CUDA kernels take up to 256"
    return None


def check_lengths(op: str, lengths: Tensor, count: int, why: str, q: Tensor) -> None:
    """lengths is int64 [count] on q's device."""
    checks.is_index(op, "lengths", lengths)
    checks.shape(op, "lengths", lengths, [count], why)
    checks.same_device(op, "lengths", lengths, q, "q")


def check_cache_lengths(op: str, lengths: Tensor, capacity: int) -> None:
    """Every length lies in 0 to `capacity`."""
    for i, length in enumerate(lengths.tolist()):
        if not 0 <= length <= capacity:
            checks.fail(
                op,
                f"lengths[{i}]",
                f"is {length}",
                f"0 to {capacity}, the positions of the cache",
                "Pass the number of keys written so far, these queries' own included.",
            )
