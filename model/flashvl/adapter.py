"""From encoder features to decoder rows: compression, LayerNorm and a three-layer MLP.

The released adapters are `p0 = [LayerNorm, Linear, GELU, Linear, GELU]` and `proj = Linear`. Static
and Dynamic put a 2x2 pixel shuffle in front (4 C channels), Dynamic-ISS a stitched canvas (C
channels). Compression, stitching and the LayerNorm are one op.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

import flashvl_kernels as fvk
from flashvl.config import AdapterConfig
from flashvl.layers import Linear, Norm, Part
from flashvl_kernels.compression import Compression
from flashvl_kernels.tiles import TileGrid


class Adapter(Part):
    """Features [B, N, C] to rows of the decoder's width."""

    def __init__(self, config: AdapterConfig, **made: Any) -> None:
        super().__init__()
        self.norm = Norm(config.input, config.eps, bias=True, **made)
        self.fc1 = Linear(config.input, config.inner, **made)
        self.fc2 = Linear(config.inner, config.inner, **made)
        self.proj = Linear(config.inner, config.output, **made)

    def forward(
        self,
        features: Tensor,
        how: Compression,
        grid: TileGrid | None = None,
        size: tuple[int, int] | None = None,
    ) -> Tensor:
        """features [B, h*w, C] of a map of `size`, or with `grid` tiles [B*T, t*t, C] to stitch.

        Returns [B, tokens, output].
        """
        norm = self.norm.as_prologue()
        x = fvk.compress_tokens(features, how, norm=norm, grid=grid, size=size)
        x = self.fc1(x, activation="gelu")
        x = self.fc2(x, activation="gelu")
        return self.proj(x)
