"""The backward passes of `tile_attention` and `causal_attention`, where their scores are few.

Longer sequences, and everything but fp32 on a CPU with AVX2, go back through the recomputed
reference, whose SDPA is a FlashAttention in both directions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flashvl_kernels.gradients import kernels

# 512 by 512 scores and their gradients are 2 MiB, the second-level cache.
MOST_SCORES = 512 * 512
LONGEST = 1024  # of queries, keys and channels alone


def _runs(grad: Tensor | None, q: Tensor, keys: int) -> bool:
    return (
        grad is not None
        and 0 < q.shape[1] * keys <= MOST_SCORES
        and max(q.shape[1], keys, q.shape[3]) <= LONGEST
        and kernels.runs_in_fp32("attention_backward", q, grad)
    )


def tile_attention(
    needs: tuple[bool, ...],
    grads: tuple[Tensor | None, ...],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Tensor | None,
    scale: float | None,
) -> Any:
    (grad,) = grads
    if lengths is not None or not _runs(grad, q, q.shape[1]):
        return NotImplemented
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    found = torch.ops.flashvl_cpu.attention_backward(grad, q, k, v, None, factor)
    return [*found, None, None]


def causal_attention(
    needs: tuple[bool, ...],
    grads: tuple[Tensor | None, ...],
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths: Tensor,
    scale: float | None,
) -> Any:
    (grad,) = grads
    if not _runs(grad, q, k_cache.shape[2]):
        return NotImplemented
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    keys, values = k_cache.transpose(1, 2), v_cache.transpose(1, 2)
    found = torch.ops.flashvl_cpu.attention_backward(grad, q, keys, values, lengths, factor)
    dq, dk, dv = found
    return [dq, dk.transpose(1, 2), dv.transpose(1, 2), None, None]
