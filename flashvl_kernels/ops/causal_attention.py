"""Causal attention of new queries over a KV cache: prefill in one go or in chunks.

Grouped-query attention (Ainslie et al., arXiv 2305.13245): H query heads share Hkv KV heads, which
are read where they lie. Rows are right-aligned to each sequence's length, so one call serves a
fresh prompt, a later chunk and a batch of unequal prompts padded on the left. Keys past a length
are never looked at, whatever that memory holds. Non-finite keys below the length may reach every
row of their sequence, as in PyTorch's SDPA, which multiplies a masked key by zero.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flashvl_kernels import checks, triton
from flashvl_kernels.attention import (
    attend_causally,
    attend_masked,
    check_cache,
    check_cache_lengths,
    check_heads,
    cuda_reason,
    is_traced,
    runs,
    zeros_from,
)
from flashvl_kernels.gradients import attention as gradients
from flashvl_kernels.spec import SUPPORTS_ALL, Call, Cost, Maker, OpSpec, Sample, call, nbytes


def check(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor, scale: float | None
) -> None:
    checks.rank("causal_attention", "q", q, "[B, N, H, D]")
    check_heads("causal_attention", q, scale)
    check_cache("causal_attention", q, k_cache, v_cache, lengths)


def check_values(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor, scale: float | None
) -> None:
    check_cache_lengths("causal_attention", lengths, k_cache.shape[2])


def reference(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor, scale: float | None
) -> Tensor:
    if is_traced(lengths):
        return attend_masked(q, k_cache, v_cache, lengths, scale)
    if q.shape[0] == 0:
        return zeros_from(q)
    outs = []
    for first, last, length in runs(lengths.tolist()):
        keys, values = (cache[first:last, :, :length] for cache in (k_cache, v_cache))
        outs.append(attend_causally(q[first:last], keys, values, scale))
    return torch.cat(outs) if len(outs) > 1 else outs[0]


def fake(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor, scale: float | None
) -> Tensor:
    return q.new_empty(q.shape)


def cost(q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor, scale: float | None) -> Cost:
    queries, heads, head_dim = q.shape[1:]
    rows = [min(queries, length) for length in lengths.tolist()]
    # The rows of a sequence see length - rows + 1 up to length keys.
    pairs = sum(r * (2 * n - r + 1) // 2 for r, n in zip(rows, lengths.tolist(), strict=True))
    key = k_cache.shape[1] * head_dim * q.element_size()
    read = sum(rows) * heads * head_dim * q.element_size() + 2 * int(lengths.sum()) * key
    return Cost(read + nbytes(lengths), nbytes(q), 4 * pairs * heads * head_dim)


def _call(
    m: Maker,
    queries: int,
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
    q = m.normal(len(lengths), queries, query_heads, head_dim)
    return call(q, cache, torch.tensor(lengths), scale)


def _views(m: Maker) -> Call:
    """The first positions of a longer cache, queries out of a fused projection."""
    q = m.normal(2, 5, 6 * 24)[..., : 4 * 24].unflatten(-1, (4, 24))
    cache = m.normal(2, 2, 16, 24)[:, :, :9], m.normal(2, 2, 20, 24)[:, :, :9]
    return call(q, cache, torch.tensor([9, 7]))


def _tokens_outside(m: Maker) -> Call:
    cache = tuple(m.normal(2, 8, 2, 16).transpose(1, 2) for _ in range(2))
    return call(m.normal(2, 4, 3, 16).transpose(1, 2), cache, torch.tensor([8, 3]))


def _hostile(
    m: Maker,
    q: tuple[int, ...] = (2, 3, 4, 8),
    k: tuple[int, ...] = (2, 2, 6, 8),
    v: tuple[int, ...] = (2, 2, 6, 8),
    lengths: list[int] | None = None,
) -> Call:
    return call(m.normal(*q), (m.normal(*k), m.normal(*v)), torch.tensor(lengths or [6, 5]))


SAMPLES = (
    Sample("fresh prompt", lambda m: _call(m, 12, (6, 1, 128), [12])),
    Sample("a later chunk", lambda m: _call(m, 5, (4, 2, 64), [17, 17], 20)),
    Sample("unequal prompts, padded left", lambda m: _call(m, 9, (4, 2, 16), [9, 4, 4, 7], 9)),
    Sample("heads not shared", lambda m: _call(m, 7, (3, 3, 72), [7, 9], 12), "edge"),
    Sample("one query", lambda m: _call(m, 1, (6, 2, 80), [5, 1, 8], 8), "edge"),
    Sample("an empty sequence", lambda m: _call(m, 3, (2, 1, 8), [0, 3, 0], 4), "edge"),
    Sample("one real row", lambda m: _call(m, 6, (2, 2, 7), [1]), "edge"),
    Sample("head dim 1, own scale", lambda m: _call(m, 4, (5, 1, 1), [11], scale=2.5), "edge"),
    Sample("scale of zero", lambda m: _call(m, 40, (3, 1, 64), [50], scale=0.0), "edge"),
    Sample("negative scale", lambda m: _call(m, 40, (3, 1, 72), [40], scale=-0.3), "edge"),
    Sample("across kernel blocks", lambda m: _call(m, 70, (2, 1, 40), [131], 140), "edge"),
    Sample("blocks of rows", lambda m: _call(m, 150, (3, 1, 72), [290, 20], 300), "edge"),
    Sample("fresh, across blocks", lambda m: _call(m, 140, (4, 2, 64), [140]), "edge"),
    Sample("views of a longer cache", _views, "strided"),
    Sample("tokens outside heads", _tokens_outside, "strided"),
    Sample("no queries", lambda m: _call(m, 0, (4, 2, 8), [3, 5], 6), "zero"),
    Sample(
        "no sequences",
        lambda m: call(
            m.normal(0, 3, 4, 8),
            (m.normal(0, 2, 6, 8), m.normal(0, 2, 6, 8)),
            torch.zeros(0, dtype=torch.int64),
        ),
        "zero",
    ),
    Sample("no cache yet", lambda m: _call(m, 2, (4, 2, 8), [0, 0]), "zero"),
    Sample(
        "cache past 2^31",
        lambda m: call(
            m.far(2, 3, 4, 8), (m.far(2, 2, 6, 8), m.far(2, 2, 6, 8)), torch.tensor([6, 4])
        ),
        "far",
    ),
    Sample("heads not split", lambda m: _hostile(m, q=(2, 3, 32)), "hostile", error="q has shape"),
    Sample(
        "no head dimension",
        lambda m: _hostile(m, (2, 3, 4, 0), (2, 2, 6, 0), (2, 2, 6, 0)),
        "hostile",
        error="needs a head dimension above 0",
    ),
    Sample(
        "another batch",
        lambda m: _hostile(m, k=(1, 2, 6, 8)),
        "hostile",
        error=r"k_cache has shape \[1, 2, 6, 8\]; needs \[2, 2, 6, 8\]",
    ),
    Sample(
        "v of another capacity",
        lambda m: _hostile(m, v=(2, 2, 5, 8)),
        "hostile",
        error=r"v_cache has shape \[2, 2, 5, 8\]; needs \[2, 2, 6, 8\]",
    ),
    Sample(
        "KV heads that do not divide",
        lambda m: _hostile(m, k=(2, 3, 6, 8), v=(2, 3, 6, 8)),
        "hostile",
        error="k_cache has 3 KV heads for 4 query heads",
    ),
    Sample(
        "longer than the cache",
        lambda m: _hostile(m, lengths=[6, 7]),
        "hostile",
        error=r"lengths\[1\] is 7; needs 0 to 6",
    ),
    Sample(
        "a negative length",
        lambda m: _hostile(m, lengths=[-1, 6]),
        "hostile",
        error=r"lengths\[0\] is -1; needs 0 to 6",
    ),
    Sample(
        "a length too few",
        lambda m: _hostile(m, lengths=[6]),
        "hostile",
        error=r"lengths has shape \[1\]; needs \[2\]",
    ),
    Sample(
        "cache of another dtype",
        lambda m: call(
            m.normal(1, 1, 1, 8),
            (m.normal(1, 1, 2, 8, dtype=torch.float64), m.normal(1, 1, 2, 8)),
            torch.tensor([2]),
        ),
        "hostile",
        error="k_cache has dtype float64 but q has float32",
    ),
    Sample(
        "int32 lengths",
        lambda m: call(
            m.normal(1, 1, 1, 8),
            (m.normal(1, 1, 2, 8), m.normal(1, 1, 2, 8)),
            torch.tensor([2], dtype=torch.int32),
        ),
        "hostile",
        error="lengths has dtype int32; needs int64",
    ),
    Sample(
        "Qwen2 prefill of 300",
        lambda m: _call(m, 300, (12, 2, 128), [300]),
        "bench",
        family="flash-vl, qwen2-vl",
    ),
    Sample(
        "Qwen2 chunk of 256 at 2048",
        lambda m: _call(m, 256, (12, 2, 128), [2048]),
        "bench",
        family="flash-vl, qwen2-vl",
    ),
    Sample(
        "InternLM2.5-1.8B prefill of 300",
        lambda m: _call(m, 300, (16, 8, 128), [300]),
        "bench",
        family="internvl",
    ),
    Sample(
        "Qwen2-0.5B prefill of 800",
        lambda m: _call(m, 800, (14, 2, 64), [800]),
        "bench",
        family="llava-onevision",
    ),
)

SPEC = OpSpec(
    name="causal_attention",
    schema="(Tensor q, Tensor k_cache, Tensor v_cache, Tensor lengths, float? scale) -> Tensor",
    check=check,
    check_values=check_values,
    reference=reference,
    fake=fake,
    cost=cost,
    samples=SAMPLES,
    backward=gradients.causal_attention,
    kernels={
        "cpu": SUPPORTS_ALL,
        "cuda": cuda_reason,
        "triton": triton.supports("causal_attention"),
    },
)


@SPEC.public
def causal_attention(
    q: Tensor, cache: tuple[Tensor, Tensor], lengths: Tensor, scale: float | None = None
) -> Tensor:
    """Attention of each query over the keys up to its own position.

    q: [B, N, H, D] in bfloat16, float16 or float32. cache: k and v, each [B, Hkv, S, D], with any
    strides; H is a multiple of Hkv. lengths: int64 [B], the keys that count in each sequence,
    those of these queries included: query i of sequence b stands at position lengths[b] - N + i.
    scale: D ** -0.5 when left out.
    Returns [B, N, H, D]; rows at negative positions (padding on the left) are zeros. What the
    cache holds past a length has no effect, NaN included.
    Raises TypeError for dtypes; ValueError for shapes, devices, scale, and lengths outside 0..S.
    """
    return SPEC(q, cache[0], cache[1], lengths, scale)
