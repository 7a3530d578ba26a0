"""The backward pass of `swiglu_mlp`: its gate and up are computed again, then four products.

With n the normalised rows, (gate, up) = n w_gate_upᵀ, h = silu(gate) up and dh = dy w_down:

    dw_down = dyᵀ h    dgate = dh up silu'(gate)    dup = dh silu(gate)
    dw_gate_up = (dgate, dup)ᵀ n    dn = (dgate, dup) w_gate_up    dx = dy + dn through the norm

That is five products where autograd through the reference takes six, and one pass over what lies
between them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flashvl_kernels.gradients import kernels
from flashvl_kernels.gradients.norm import norm_backward
from flashvl_kernels.gradients.rows import as_rows
from flashvl_kernels.norm import apply_norm


def swiglu_backward(gate_up: Tensor, dh: Tensor) -> tuple[Tensor, Tensor]:
    """(dgate, dup) [M, 2F] and h [M, F] of gate_up [M, 2F] and the gradient dh [M, F] of h."""
    wide = torch.promote_types(gate_up.dtype, torch.float32)
    gate, up = gate_up.to(wide).chunk(2, dim=-1)
    dh = dh.to(wide)
    part = torch.sigmoid(gate)
    silu = gate * part
    dgate = dh * up * (part * (1 + gate * (1 - part)))
    return torch.cat((dgate, dh * silu), -1).to(gate_up.dtype), (silu * up).to(gate_up.dtype)


def backward(
    needs: tuple[bool, ...],
    grads: tuple[Tensor | None, ...],
    x: Tensor,
    norm_weight: Tensor,
    norm_eps: float,
    gate_up_data: Tensor,
    gate_up_scale: Tensor | None,
    gate_up_format: str,
    gate_up_columns: int,
    down_data: Tensor,
    down_scale: Tensor | None,
    down_format: str,
    down_columns: int,
) -> Any:
    (grad,) = grads
    if grad is None or gate_up_format != "bf16" or down_format != "bf16":
        return NotImplemented
    found: list[Tensor | None] = [None] * len(needs)
    need_rows, need_gate_up, need_down = needs[0] or needs[1], needs[3], needs[7]
    if kernels.runs_in_one("swiglu_mlp_backward", x, grad, gate_up_data, down_data):
        made = torch.ops.flashvl_cpu.swiglu_mlp_backward(
            grad, x, norm_weight, norm_eps, gate_up_data, down_data,
            needs[0], needs[1], need_gate_up, need_down,
        )  # fmt: skip
        for place, gradient in zip((0, 1, 3, 7), made, strict=True):
            if needs[place]:
                found[place] = gradient
        return found
    rows, dy = as_rows(x), as_rows(grad)
    n = apply_norm(rows, norm_weight, None, norm_eps)
    dgate_up, h = swiglu_backward(n @ gate_up_data.T, dy @ down_data)
    if need_down:
        found[7] = dy.T @ h
    if need_gate_up:
        found[3] = dgate_up.T @ n
    if need_rows:
        dn = dgate_up @ gate_up_data
        dx, found[1], _ = norm_backward(dn, rows, norm_weight, None, norm_eps, add=dy)
        found[0] = dx.reshape(x.shape)
    return found
