"""Learning under weights as packing leaves them, so that a model loses little when it is packed.

Loss and gradients are those at the rounded weights; what is updated are the weights that were there
before. That is the straight-through estimator (arXiv 1308.3432) of training aware of quantisation
(arXiv 1712.05877).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from flashvl.layers import Linear
from flashvl_kernels.packing import pack


@contextmanager
def rounded(model: nn.Module, format: str) -> Iterator[None]:
    """Inside, every weight of `model` that loading packs has the values that `format` ("int8" or
    "int4") leaves of it; afterwards its own again, and whatever gradient it got."""
    weights = [
        layer.weight for layer in model.modules()
        if isinstance(layer, Linear) and layer.packable and layer.weight is not None
    ]  # fmt: skip
    own = [weight.data for weight in weights]
    try:
        for weight, values in zip(weights, own, strict=True):
            weight.data = pack(values, format).dequantize(values.dtype)
        yield
    finally:
        for weight, values in zip(weights, own, strict=True):
            weight.data = values
