"""The backward pass of `rope_qkv`: the heads side by side again, turned by the opposite angle."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flashvl_kernels.gradients import kernels, watched


def backward(
    needs: tuple[bool, ...],
    grads: tuple[Tensor | None, ...],
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor | None,
    heads: int,
    kv_heads: int,
) -> Any:
    dq, dk, dv = grads
    if needs[1] or needs[2] or dq is None or dk is None or dv is None:
        return NotImplemented  # tables that learn, or results nobody used
    if kernels.runs("rope_qkv_backward", dq):
        watched.uses("rope_qkv_backward")
        args = (dq, dk, dv, cos, sin, positions)
        dqkv = torch.ops.flashvl_cpu.rope_qkv_backward(*args)
    else:
        dqkv = turned_back(dq, dk, dv, cos, sin, positions)
    return [dqkv] + [None] * (len(needs) - 1)


def turned_back(
    dq: Tensor, dk: Tensor, dv: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None
) -> Tensor:
    """The same on PyTorch's ops: dqkv [N, (H + 2 Hkv) * D]."""
    wide = torch.promote_types(dq.dtype, torch.float32)
    rows = slice(dq.shape[0]) if positions is None else positions
    c, s = (table[rows].to(wide).unsqueeze(1) for table in (cos, sin))
    left, right = torch.cat((dq, dk), 1).to(wide).chunk(2, -1)
    turned = torch.cat((left * c + right * s, right * c - left * s), -1).to(dq.dtype)
    return torch.cat((turned, dv), 1).flatten(1)
