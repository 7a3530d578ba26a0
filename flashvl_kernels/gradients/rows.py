"""Tensors as matrices of rows, as the kernels see them."""

from __future__ import annotations

from torch import Tensor


def as_rows(tensor: Tensor) -> Tensor:
    """[..., C] as [M, C]; C may be 0."""
    return tensor.reshape(tensor.shape[:-1].numel(), tensor.shape[-1])
