"""The backward passes of `rms_norm` and `layer_norm`, which may add a residual first."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from flashvl_kernels.gradients.norm import norm_backward
from flashvl_kernels.gradients.rows import as_rows


def rms_norm(
    needs: tuple[bool, ...],
    grads: tuple[Tensor | None, ...],
    x: Tensor,
    weight: Tensor,
    eps: float,
    residual: Tensor | None,
) -> Any:
    found = _backward(grads, x, weight, None, eps, residual)
    if found is NotImplemented:
        return found
    dtotal, dweight, _ = found
    return [dtotal, dweight, None, None if residual is None else dtotal]


def layer_norm(
    needs: tuple[bool, ...],
    grads: tuple[Tensor | None, ...],
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    residual: Tensor | None,
) -> Any:
    found = _backward(grads, x, weight, bias, eps, residual)
    if found is NotImplemented:
        return found
    dtotal, dweight, dbias = found
    return [dtotal, dweight, dbias, None, None if residual is None else dtotal]


def _backward(
    grads: tuple[Tensor | None, ...],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    residual: Tensor | None,
) -> Any:
    """Gradients of the sum (which x and the residual share), the weight and the bias."""
    grad, dtotal = grads
    if grad is None:  # nobody used the normalised rows
        return NotImplemented
    total = x if residual is None else x + residual
    add = None if residual is None or dtotal is None else as_rows(dtotal)
    dx, dweight, dbias = norm_backward(as_rows(grad), as_rows(total), weight, bias, eps, add)
    return dx.reshape(x.shape), dweight, dbias
