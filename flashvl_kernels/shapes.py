"""Calls of an op that are only shapes: what a full-size sample would launch, without its memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from flashvl_kernels.spec import Maker, OpSpec, Sample, capture


class MetaMaker(Maker):
    """Tensors with shapes and no memory."""

    def normal(
        self, *shape: int, scale: float = 1.0, mean: float = 0.0, dtype: torch.dtype | None = None
    ) -> Tensor:
        """As the name says, on the meta device."""
        return torch.empty(shape, dtype=dtype or self.dtype, device="meta")

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """As the name says, on the meta device."""
        return torch.empty(shape, dtype=torch.int64, device="meta")

    def image(self, height: int, width: int) -> Tensor:
        """As the name says, on the meta device."""
        return torch.empty(height, width, 3, dtype=torch.uint8, device="meta")


def meta_call(spec: OpSpec, sample: Sample, dtype: torch.dtype) -> tuple[Any, ...]:
    """The schema arguments of a sample, all of its tensors on the meta device."""
    built = sample.make(MetaMaker(dtype, "meta"))
    args, kwargs = tree_map_only(Tensor, lambda t: t.to("meta"), (built.args, built.kwargs))
    _, flat = capture(spec.function, *args, **kwargs)
    return flat
