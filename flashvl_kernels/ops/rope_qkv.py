"""Split a fused projection into queries, keys and values, rotate, fill the KV cache: one pass.

Rotary position embedding (Su et al., arXiv 2104.09864) in the half-split layout of GPT-NeoX, Llama
and Qwen2: channel i turns with channel i + D/2. The rotation is computed in fp32 and rounded once;
Hugging Face rounds cos, sin and both products to the dtype.

Two torch ops stand behind the one function: `rope_qkv` returns all three tensors and has a
gradient, `rope_qkv_cached` writes keys and values into the cache and returns the queries.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flashvl_kernels import checks, triton
from flashvl_kernels.gradients import rope_qkv as gradients
from flashvl_kernels.samples.rope_qkv import SAMPLES, SAMPLES_CACHED
from flashvl_kernels.spec import SUPPORTS_ALL, Cost, OpSpec, nbytes


def check(
    qkv: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None, heads: int, kv_heads: int
) -> None:
    op = "rope_qkv"
    checks.rank(op, "qkv", qkv, "[N, (H + 2 Hkv) * D]")
    checks.is_float(op, "qkv", qkv)
    for argument, count in (("heads", heads), ("kv_heads", kv_heads)):
        if count < 1:
            checks.fail(op, argument, f"is {count}", "at least 1", "Read it from the config.")
    width = qkv.shape[1]
    if width == 0 or width % (2 * (heads + 2 * kv_heads)) != 0:
        checks.fail(
            op,
            "qkv",
            f"has {width} columns",
            f"(heads + 2 kv_heads) = {heads + 2 * kv_heads} times an even head dimension",
            "Check heads and kv_heads.",
        )
    checks.rank(op, "cos", cos, "[P, D/2]")
    half = width // (heads + 2 * kv_heads) // 2
    for argument, table in (("cos", cos), ("sin", sin)):
        checks.shape(op, argument, table, [cos.shape[0], half], "cos and half the head dimension")
        if table.dtype != torch.float32:
            checks.same_dtype(op, argument, table, qkv, "qkv")
        checks.same_device(op, argument, table, qkv, "qkv")
    if positions is not None:
        checks.is_index(op, "positions", positions)
        checks.shape(op, "positions", positions, [qkv.shape[0]], "the rows of qkv")
        checks.same_device(op, "positions", positions, qkv, "qkv")
    elif qkv.shape[0] > cos.shape[0]:
        checks.fail(
            op,
            "qkv",
            f"has {qkv.shape[0]} rows and no positions",
            f"at most {cos.shape[0]}, the rows of cos",
            "Build longer tables or pass positions.",
        )


def check_values(
    qkv: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None, heads: int, kv_heads: int
) -> None:
    if positions is not None:
        _check_range("positions", positions, 0, cos.shape[0], "the rows of cos")


# As a list so many are compared in 1 µs; a reduction and its two reads take 4 at any size.
FEW = 16


def _check_range(argument: str, indices: Tensor, low: int, high: int, why: str) -> None:
    """Every index lies in [low, high)."""
    if indices.numel() == 0:
        return
    if indices.numel() <= FEW:
        values = indices.tolist()
        least, most = min(values), max(values)
    else:
        least, most = (int(bound) for bound in indices.aminmax())
    if least < low or most >= high:
        checks.fail(
            "rope_qkv",
            argument,
            f"has {least if least < low else most}",
            f"{low} to {high - 1}, {why}",
            "Build longer tables or a larger cache, or correct the index.",
        )


def reference(
    qkv: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None, heads: int, kv_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    wide = torch.float64 if qkv.dtype == torch.float64 else torch.float32
    rows = slice(qkv.shape[0]) if positions is None else positions
    c, s = (table[rows].to(wide).unsqueeze(1) for table in (cos, sin))
    rotated = heads + kv_heads
    split = qkv.unflatten(1, (rotated + kv_heads, 2 * cos.shape[1]))
    # Mixed products promote to fp32: an upcast of its own would be one more pass over memory.
    left, right = split[:, :rotated].chunk(2, -1)
    turned = torch.cat((left * c - right * s, right * c + left * s), -1)
    parts = turned[:, :heads], turned[:, heads:], split[:, rotated:]
    q, k, v = (
        part.to(qkv.dtype, copy=True, memory_format=torch.contiguous_format) for part in parts
    )
    return q, k, v


def fake(
    qkv: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None, heads: int, kv_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    rows, head_dim = qkv.shape[0], 2 * cos.shape[1]
    kv = rows, kv_heads, head_dim
    return qkv.new_empty(rows, heads, head_dim), qkv.new_empty(kv), qkv.new_empty(kv)


def cost(
    qkv: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None, heads: int, kv_heads: int
) -> Cost:
    rows, half = qkv.shape[0], cos.shape[1]
    tables = 2 * rows * half * cos.element_size()
    flops = 6 * rows * (heads + kv_heads) * half
    return Cost(nbytes(qkv, positions) + tables, nbytes(qkv), flops)


def check_cached(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor | None,
    heads: int,
    kv_heads: int,
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Tensor,
) -> None:
    op = "rope_qkv"
    check(qkv, cos, sin, positions, heads, kv_heads)
    checks.rank(op, "k_cache", k_cache, "[B, Hkv, S, D]")
    needed = [k_cache.shape[0], kv_heads, k_cache.shape[2], 2 * cos.shape[1]]
    for argument, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
        checks.shape(op, argument, cache, needed, "k_cache, kv_heads and the head dimension")
        checks.same_dtype(op, argument, cache, qkv, "qkv")
    checks.is_index(op, "slots", slots)
    checks.shape(op, "slots", slots, [qkv.shape[0]], "the rows of qkv")
    checks.same_device(op, "slots", slots, qkv, "qkv")


def check_values_cached(*args: Any) -> None:
    *plain, k_cache, _, slots = args
    check_values(*plain)
    count = k_cache.shape[0] * k_cache.shape[2]
    _check_range("slots", slots, -1, count, "-1 to skip a row, else a position of the cache")


def reference_cached(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor | None,
    heads: int,
    kv_heads: int,
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Tensor,
) -> Tensor:
    q, k, v = reference(qkv, cos, sin, positions, heads, kv_heads)
    kept = slots >= 0
    if not kept.all():
        slots, k, v = slots[kept], k[kept], v[kept]
    if slots.numel() > 0:
        sequence, position = slots // k_cache.shape[2], slots % k_cache.shape[2]
        k_cache[sequence, :, position] = k
        v_cache[sequence, :, position] = v
    return q


def fake_cached(*args: Any) -> Tensor:
    return fake(*args[:6])[0]


def cost_cached(*args: Any) -> Cost:
    *plain, _, _, slots = args
    every, (qkv, cos, *_, kv_heads) = cost(*plain), plain
    skipped = int((slots < 0).sum()) * kv_heads * cos.shape[1]
    kv_bytes = 4 * skipped * qkv.element_size()
    return Cost(
        every.bytes_read + nbytes(slots) - kv_bytes,
        every.bytes_written - kv_bytes,
        every.flops - 6 * skipped,
    )


SPEC = OpSpec(
    name="rope_qkv",
    schema="(Tensor qkv, Tensor cos, Tensor sin, Tensor? positions, int heads, int kv_heads)"
    " -> (Tensor, Tensor, Tensor)",
    check=check,
    check_values=check_values,
    reference=reference,
    fake=fake,
    cost=cost,
    samples=SAMPLES,
    backward=gradients.backward,
    kernels={
        "cpu": SUPPORTS_ALL,
        "cuda": SUPPORTS_ALL,
        "triton": triton.supports("rope_qkv"),
    },
    keep=("cos", "sin"),
)

SPEC_CACHED = OpSpec(
    name="rope_qkv_cached",
    schema="(Tensor qkv, Tensor cos, Tensor sin, Tensor? positions, int heads, int kv_heads,"
    " Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor slots) -> Tensor",
    check=check_cached,
    check_values=check_values_cached,
    reference=reference_cached,
    fake=fake_cached,
    cost=cost_cached,
    samples=SAMPLES_CACHED,
    kernels={
        "cpu": SUPPORTS_ALL,
        "cuda": SUPPORTS_ALL,
        "triton": triton.supports("rope_qkv_cached"),
    },
    differentiable=False,
    mutates=True,
    keep=("qkv", "cos", "sin", "k_cache", "v_cache"),
)


@SPEC_CACHED.public
@SPEC.public
def rope_qkv(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor | None,
    heads: int,
    kv_heads: int,
    cache: tuple[Tensor, Tensor] | None = None,
    slots: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor, Tensor]:
    """Split qkv into heads and rotate queries and keys; with a cache, write keys and values there.

    qkv: [N, (H + 2 Hkv) * D] in bfloat16, float16 or float32: all query heads, then all key heads,
    then all value heads; H = heads, Hkv = kv_heads, D even. cos, sin: [P, D/2] in float32 or the
    dtype of qkv. positions: int64 [N], rows of cos and sin; None means 0 to N - 1.
    cache: k and v, each [B, Hkv, S, D], with any strides; row n goes to position slots[n] % S of
    sequence slots[n] // S, or nowhere where slots[n], int64 [N], is -1. Each slot may appear once:
    of rows sharing one, any may stay.

    Returns (q [N, H, D], k [N, Hkv, D], v [N, Hkv, D]), or q alone with a cache.
    Raises TypeError for dtypes; ValueError for shapes, devices, positions or slots out of range,
    and for a gradient through the cache.
    """
    if cache is None:
        if slots is not None:
            checks.fail("rope_qkv", "slots", "is given without a cache", "both", "Pass cache.")
        result: tuple[Tensor, Tensor, Tensor] = SPEC(qkv, cos, sin, positions, heads, kv_heads)
        return result
    if slots is None:
        checks.fail("rope_qkv", "cache", "is given without slots", "both", "See KVCache.slots.")
    if torch.is_grad_enabled() and qkv.requires_grad:
        checks.fail(
            "rope_qkv",
            "qkv",
            "wants a gradient",
            "none, for there is no way back through a cache",
            "Leave out the cache, or run under torch.no_grad().",
        )
    query: Tensor = SPEC_CACHED(qkv, cos, sin, positions, heads, kv_heads, *cache, slots)
    return query
