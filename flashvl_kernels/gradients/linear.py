"""The backward pass of `linear`: two products, and one more where an activation is undone.

With n the normalised rows, z = n wᵀ + bias and dz = dy activation'(z):

    dw = dzᵀ n    dbias = the sum of dz over rows    dn = dz w    dresidual = dy
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from flashvl_kernels.gradients import kernels
from flashvl_kernels.gradients.norm import norm_backward
from flashvl_kernels.gradients.rows import as_rows
from flashvl_kernels.norm import apply_norm

Gradients = list[Tensor | None]

_ACTIVATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gelu": lambda grad, z: torch.ops.aten.gelu_backward(grad, z),
    "gelu_tanh": lambda grad, z: torch.ops.aten.gelu_backward(grad, z, approximate="tanh"),
    "silu": lambda grad, z: torch.ops.aten.silu_backward(grad, z),
}


def backward(
    needs: tuple[bool, ...],
    grads: tuple[Tensor | None, ...],
    x: Tensor,
    w_data: Tensor,
    w_scale: Tensor | None,
    w_format: str,
    w_columns: int,
    bias: Tensor | None,
    activation: str | None,
    residual: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    norm_eps: float,
) -> Any:
    (grad,) = grads
    if w_format != "bf16" or grad is None:
        return NotImplemented
    found: Gradients = [None] * len(needs)
    need_x, need_w, need_bias, need_residual = needs[0], needs[1], needs[5], needs[7]
    need_norm = needs[8] or needs[9]
    if need_residual:
        found[7] = grad
    if not (need_x or need_w or need_bias or need_norm):
        return found
    if kernels.runs_in_one("linear_backward", x, grad, w_data):
        dx, dw, dbias, dnorm_weight, dnorm_bias = torch.ops.flashvl_cpu.linear_backward(
            grad, x, w_data, bias, activation, norm_weight, norm_bias, norm_eps,
            need_x, need_w, need_bias, need_norm,
        )  # fmt: skip
        made = {0: dx, 1: dw, 5: dbias, 8: dnorm_weight, 9: dnorm_bias}
        for place, gradient in made.items():
            if needs[place]:
                found[place] = gradient
        return found
    rows = as_rows(x)
    n = rows
    if norm_weight is not None and (need_w or activation is not None):
        n = apply_norm(rows, norm_weight, norm_bias, norm_eps)
    dz = as_rows(grad)
    if activation is not None:
        dz = _ACTIVATIONS[activation](dz, F.linear(n, w_data, bias))
    if need_w:
        found[1] = dz.T @ n
    if need_bias:
        found[5] = dz.sum(0)
    if need_x or need_norm:
        dn = dz @ w_data
        if norm_weight is not None:
            dn, found[8], found[9] = norm_backward(dn, rows, norm_weight, norm_bias, norm_eps)
        found[0] = dn.reshape(x.shape)
    return found
