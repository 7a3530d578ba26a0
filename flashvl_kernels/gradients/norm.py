"""The derivative of RMSNorm and LayerNorm, of one pass over the rows where the CPU kernel runs.

With x̂ the normalised row, g the gradient of the result times the weight and r = 1/std:

    RMSNorm    dx = r (g - x̂ mean(g x̂))
    LayerNorm  dx = r (g - mean(g) - x̂ mean(g x̂))

and dweight, dbias are the sums over rows of grad x̂ and of grad. In fp32, rounded once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flashvl_kernels.gradients import kernels, watched


def norm_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    add: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """dx, dweight and dbias of a norm of x [M, C] whose result has the gradient grad [M, C].

    bias None: RMSNorm. add [M, C]: a gradient that x has from elsewhere, added before rounding.
    """
    if kernels.runs("norm_backward", grad):
        watched.uses("norm_backward")
        dx, dweight, dbias = torch.ops.flashvl_cpu.norm_backward(grad, x, weight, bias, eps, add)
        return dx, dweight, None if bias is None else dbias
    dtype = x.dtype
    wide = torch.promote_types(dtype, torch.float32)
    x, grad, scale = x.to(wide), grad.to(wide), weight.to(wide)
    g = grad * scale
    if bias is None:
        rstd = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
        unit = x * rstd
        # The reference rounds the normalised row before the weight multiplies it.
        dweight = (grad * unit.to(dtype)).sum(0)
        centred = g
    else:
        variance, mean = torch.var_mean(x, -1, correction=0, keepdim=True)
        rstd = torch.rsqrt(variance + eps)
        unit = (x - mean) * rstd
        dweight = (grad * unit).sum(0)
        centred = g - g.mean(-1, keepdim=True)
    dx = (centred - unit * (g * unit).mean(-1, keepdim=True)) * rstd
    if add is not None:
        dx = dx + add
    summed = None if bias is None else grad.sum(0).to(dtype)
    return dx.to(dtype), dweight.to(dtype), summed
