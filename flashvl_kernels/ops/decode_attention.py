"""Attention of one new query a sequence over its KV cache: the decode step.

Bound by reading the cache once. The query heads that share a KV head go in as the rows of one
matrix product, as in FlashInfer's decode kernels (Ye et al., arXiv 2501.01005). Keys past a
sequence's length are never looked at, whatever that memory holds.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flashvl_kernels import checks, triton
from flashvl_kernels.attention import (
    attend_masked,
    attend_one,
    check_cache,
    check_cache_lengths,
    check_heads,
    cuda_reason,
    is_traced,
    runs,
    zeros_from,
)
from flashvl_kernels.spec import SUPPORTS_ALL, Call, Cost, Maker, OpSpec, Sample, call, nbytes


def check(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor, scale: float | None
) -> None:
    checks.rank("decode_attention", "q", q, "[B, H, D]")
    check_heads("decode_attention", q, scale)
    check_cache("decode_attention", q, k_cache, v_cache, lengths)


def check_values(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor, scale: float | None
) -> None:
    check_cache_lengths("decode_attention", lengths, k_cache.shape[2])


def reference(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor, scale: float | None
) -> Tensor:
    if is_traced(lengths):
        return attend_masked(q[:, None], k_cache, v_cache, lengths, scale)[:, 0]
    if q.shape[0] == 0:
        return zeros_from(q)
    outs = []
    for first, last, length in runs(lengths.tolist()):
        keys, values = (cache[first:last, :, :length] for cache in (k_cache, v_cache))
        outs.append(attend_one(q[first:last], keys, values, scale))
    return torch.cat(outs) if len(outs) > 1 else outs[0]


def fake(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor, scale: float | None
) -> Tensor:
    return q.new_empty(q.shape)


def cost(q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor, scale: float | None) -> Cost:
    keys = int(lengths.sum())
    row = q.shape[2] * q.element_size()
    # The query of an empty sequence need not be read.
    read = int((lengths > 0).sum()) * q.shape[1] * row + 2 * keys * k_cache.shape[1] * row
    return Cost(read + nbytes(lengths), nbytes(q), 4 * keys * q.shape[1] * q.shape[2])


def _call(
    m: Maker,
    heads: tuple[int, int, int],
    lengths: list[int],
    capacity: int | None = None,
    scale: float | None = None,
) -> Call:
    """heads: (query heads, KV heads, head dim). The cache holds NaN past every length."""
    query_heads, kv_heads, head_dim = heads
    shape = len(lengths), kv_heads, max(lengths) if capacity is None else capacity, head_dim
    cache = m.normal(*shape), m.normal(*shape)
    for b, length in enumerate(lengths):
        for tensor in cache:
            tensor[b, :, length:] = float("nan")
    return call(m.normal(len(lengths), query_heads, head_dim), cache, torch.tensor(lengths), scale)


def _views(m: Maker) -> Call:
    """The first positions of a longer cache, queries out of a fused projection."""
    q = m.normal(2, 6 * 24)[:, : 4 * 24].unflatten(-1, (4, 24))
    cache = m.normal(2, 2, 16, 24)[:, :, :9], m.normal(2, 2, 20, 24)[:, :, :9]
    return call(q, cache, torch.tensor([9, 7]))


def _channels_apart(m: Maker) -> Call:
    cache = m.transposed(2, 2, 8, 16), m.normal(2, 2, 8, 32)[..., ::2]
    return call(m.normal(2, 4, 32)[..., ::2], cache, torch.tensor([8, 5]))


def _not_finite(m: Maker) -> Call:
    """A NaN query; a NaN and an infinite key, each in the second of two tasks."""
    made = _call(m, (4, 2, 16), [300, 300, 300, 2])
    q, (k, v) = made.args[0], made.args[1]
    q[0, 1, 3], k[1, 0, 280, 5], k[2, 1, 299, 7] = float("nan"), float("nan"), float("inf")
    v[3, 1, 0, 2], v[3, 1, 1, 4] = float("inf"), float("nan")
    return made


def _tokens_outside(m: Maker) -> Call:
    cache = tuple(m.normal(2, 8, 2, 16).transpose(1, 2) for _ in range(2))
    return call(m.normal(4, 2, 16).transpose(0, 1), cache, torch.tensor([8, 3]))


def _hostile(
    m: Maker,
    q: tuple[int, ...] = (2, 4, 8),
    k: tuple[int, ...] = (2, 2, 6, 8),
    v: tuple[int, ...] = (2, 2, 6, 8),
    lengths: list[int] | None = None,
) -> Call:
    return call(m.normal(*q), (m.normal(*k), m.normal(*v)), torch.tensor(lengths or [6, 5]))


SAMPLES = (
    Sample("one sequence", lambda m: _call(m, (6, 1, 128), [21])),
    Sample("unequal lengths", lambda m: _call(m, (4, 2, 64), [3, 11, 11, 7], 12)),
    Sample("heads not shared", lambda m: _call(m, (3, 3, 72), [9, 9], 10), "edge"),
    Sample("one key", lambda m: _call(m, (6, 2, 80), [1, 1]), "edge"),
    Sample("an empty sequence", lambda m: _call(m, (4, 1, 8), [0, 5], 6), "edge"),
    Sample("head dim 1, own scale", lambda m: _call(m, (5, 1, 1), [13], scale=2.5), "edge"),
    Sample("head dim 7, long", lambda m: _call(m, (6, 2, 7), [517], 600), "edge"),
    # Past one task of 256 keys, past one block of six heads, and every remainder of both.
    Sample(
        "keys and heads in several blocks",
        lambda m: _call(m, (18, 2, 40), [255, 256, 257, 0, 515], 520),
        "edge",
    ),
    Sample("13 heads on one", lambda m: _call(m, (13, 1, 130), [6]), "edge"),
    Sample("scale zero", lambda m: _call(m, (4, 2, 16), [9, 3], scale=0.0), "edge"),
    Sample("scale below zero", lambda m: _call(m, (4, 2, 16), [9, 3], scale=-0.5), "edge"),
    Sample("NaN and Inf", _not_finite, "edge"),
    Sample("channels with a gap", _channels_apart, "strided"),
    Sample("views of a longer cache", _views, "strided"),
    Sample("tokens outside heads", _tokens_outside, "strided"),
    Sample(
        "no sequences",
        lambda m: call(
            m.normal(0, 4, 8),
            (m.normal(0, 2, 6, 8), m.normal(0, 2, 6, 8)),
            torch.zeros(0, dtype=torch.int64),
        ),
        "zero",
    ),
    Sample("no cache yet", lambda m: _call(m, (4, 2, 8), [0, 0]), "zero"),
    Sample(
        "cache past 2^31",
        lambda m: call(
            m.far(2, 4, 8), (m.far(2, 2, 6, 8), m.far(2, 2, 6, 8)), torch.tensor([6, 4])
        ),
        "far",
    ),
    Sample(
        "a token axis too many",
        lambda m: _hostile(m, q=(2, 1, 4, 8)),
        "hostile",
        error=r"q has shape \[2, 1, 4, 8\]; needs 3 axes",
    ),
    Sample(
        "another head dimension",
        lambda m: _hostile(m, k=(2, 2, 6, 16)),
        "hostile",
        error=r"k_cache has shape \[2, 2, 6, 16\]; needs \[2, 2, 6, 8\]",
    ),
    Sample(
        "v of another shape",
        lambda m: _hostile(m, v=(2, 1, 6, 8)),
        "hostile",
        error=r"v_cache has shape \[2, 1, 6, 8\]; needs \[2, 2, 6, 8\]",
    ),
    Sample(
        "KV heads that do not divide",
        lambda m: _hostile(m, q=(2, 3, 8)),
        "hostile",
        error="k_cache has 2 KV heads for 3 query heads",
    ),
    Sample(
        "longer than the cache",
        lambda m: _hostile(m, lengths=[7, 6]),
        "hostile",
        error=r"lengths\[0\] is 7; needs 0 to 6",
    ),
    Sample(
        "a negative length",
        lambda m: _hostile(m, lengths=[6, -2]),
        "hostile",
        error=r"lengths\[1\] is -2; needs 0 to 6",
    ),
    Sample(
        "integers",
        lambda m: call(
            m.integers(0, 9, 1, 1, 8),
            (m.integers(0, 9, 1, 1, 2, 8), m.integers(0, 9, 1, 1, 2, 8)),
            torch.tensor([2]),
        ),
        "hostile",
        error="q has dtype int64",
    ),
    Sample(
        "Qwen2 at 300",
        lambda m: _call(m, (12, 2, 128), [300]),
        "bench",
        family="flash-vl, qwen2-vl",
    ),
    Sample(
        "Qwen2 at 4096, batch of 8",
        lambda m: _call(m, (12, 2, 128), [4096] * 8),
        "bench",
        family="flash-vl, qwen2-vl",
    ),
    Sample(
        "InternLM2.5-1.8B at 2048",
        lambda m: _call(m, (16, 8, 128), [2048]),
        "bench",
        family="internvl",
    ),
    Sample(
        "Qwen2-0.5B at 4096",
        lambda m: _call(m, (14, 2, 64), [4096]),
        "bench",
        family="llava-onevision",
    ),
)

SPEC = OpSpec(
    name="decode_attention",
    schema="(Tensor q, Tensor k_cache, Tensor v_cache, Tensor lengths, float? scale) -> Tensor",
    check=check,
    check_values=check_values,
    reference=reference,
    fake=fake,
    cost=cost,
    samples=SAMPLES,
    kernels={
        "cpu": SUPPORTS_ALL,
        "cuda": cuda_reason,
        "triton": triton.supports("decode_attention"),
    },
)


@SPEC.public
def decode_attention(
    q: Tensor, cache: tuple[Tensor, Tensor], lengths: Tensor, scale: float | None = None
) -> Tensor:
    """Attention of one query a sequence over all its keys.

    q: [B, H, D] in bfloat16, float16 or float32. cache: k and v, each [B, Hkv, S, D], with any
    strides; H is a multiple of Hkv. lengths: int64 [B], the keys that count in each sequence, the
    query's own included. scale: D ** -0.5 when left out.
    Returns [B, H, D]; zeros for a sequence of length 0. What the cache holds past a length has no
    effect, NaN included.
    Raises TypeError for dtypes; ValueError for shapes, devices, scale, and lengths outside 0..S.
    """
    return SPEC(q, cache[0], cache[1], lengths, scale)
