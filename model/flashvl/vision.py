"""The tile encoders: SigLIP2 (Tschannen et al., arXiv 2502.14786) and AIMv2 (Fini et al.,
arXiv 2411.14402).

Both turn a tile into patch rows, add a learned position to each and run a pre-norm transformer with
full attention inside the tile. They differ in four places: SigLIP2 has LayerNorm, biases and a GELU
MLP; AIMv2 has RMSNorm (one more right after the patches), no biases and a SwiGLU MLP.

Under TileGrid's rule "crop" the last layer can be asked for the stitched canvas directly: queries
that a neighbouring tile owns are never computed, and MLP and final norm run on the canvas only.
Every later step works on single rows, so the result equals stitching the finished features.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import flashvl_kernels as fvk
from flashvl.config import VisionConfig
from flashvl.layers import Linear, Norm, Part
from flashvl_kernels.tiles import TileGrid


class VisionEncoder(Part):
    """Tiles to patch features: [T, 3, S, S], or patch rows [T, t*t, 3*p*p], to [T, t*t, dim]."""

    def __init__(self, config: VisionConfig, **made: Any) -> None:
        super().__init__()
        self.config = config
        layer_norm = config.kind == "siglip2"
        # A convolution by origin, and 0.2 % of the weights: it stays in floats.
        self.patch = Linear(config.patch_values, config.dim, packable=False, **made)
        self.patch_norm = None if layer_norm else Norm(config.dim, config.eps, **made)
        self.positions = nn.Parameter(
            torch.empty(config.positions or config.tokens, config.dim, **made)
        )
        block = SiglipBlock if layer_norm else AimBlock
        self.blocks = nn.ModuleList(block(config, **made) for _ in range(config.layers))
        self.norm = Norm(config.dim, config.eps, bias=layer_norm, **made)

    def forward(self, tiles: Tensor) -> Tensor:
        """Features of every patch of every tile, [T, t*t, dim]."""
        x = self._embed(tiles)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def stitched(self, tiles: Tensor, grid: TileGrid) -> Tensor:
        """Features of the stitched canvas, [B, rows*cols, dim], of B images of `grid` each.

        Equal to stitching what `forward` gives; rule "crop" only.
        """
        if grid.rule != "crop":
            raise ValueError(
                f"grid.rule is {grid.rule!r}; only 'crop' is stitched inside the encoder: use "
                "forward and compress_tokens(grid=...) for 'mean' and 'linear'"
            )
        x = self._embed(tiles)
        for block in self.blocks[:-1]:
            x = block(x)
        return self.norm(self.blocks[-1](x, grid))

    def patch_rows(self, pixels: Tensor) -> Tensor:
        """[T, 3, S, S] to [T, t*t, 3*p*p]: patches row-major, values in (channel, row, col)."""
        side, patch = self.config.tile, self.config.patch
        want = (3, self.config.tile_px, self.config.tile_px)
        if tuple(pixels.shape[1:]) != want:
            raise ValueError(
                f"pixel_values has shape {tuple(pixels.shape)}; this encoder needs "
                f"[tiles, 3, {want[1]}, {want[2]}]: resize to whole tiles first"
            )
        cells = pixels.unflatten(3, (side, patch)).unflatten(2, (side, patch))
        return cells.permute(0, 2, 4, 1, 3, 5).reshape(-1, side * side, 3 * patch * patch)

    def _embed(self, tiles: Tensor) -> Tensor:
        rows = self.patch_rows(tiles) if tiles.dim() == 4 else tiles
        want = (self.config.tokens, self.config.patch_values)
        if rows.dim() != 3 or tuple(rows.shape[1:]) != want:
            raise ValueError(
                f"tiles has shape {tuple(tiles.shape)}; this encoder needs pixels [tiles, 3, S, S] "
                f"or patch rows [tiles, {want[0]}, {want[1]}]"
            )
        x = self.patch(rows.to(self.positions.dtype))
        if self.patch_norm is not None:
            x = self.patch_norm(x)
        return x + self.positions[: self.config.tokens]


class Block(Part):
    """Attention inside each tile, then the MLP of the subclass; both pre-norm, both residual."""

    def __init__(self, config: VisionConfig, bias: bool, **made: Any) -> None:
        super().__init__()
        self.heads = config.heads
        self.norm1 = Norm(config.dim, config.eps, bias, **made)
        self.qkv = Linear(config.dim, 3 * config.dim, bias, **made)
        self.out = Linear(config.dim, config.dim, bias, **made)
        self.norm2 = Norm(config.dim, config.eps, bias, **made)

    def forward(self, x: Tensor, grid: TileGrid | None = None) -> Tensor:
        """x [T, N, C] to the same; with `grid` to its canvas [B, rows*cols, C]."""
        qkv = self.qkv(x, norm=self.norm1)
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).unbind(2)
        if grid is None:
            mixed = fvk.tile_attention(q, k, v)
        else:
            mixed = fvk.stitched_tile_attention(q, k, v, grid)
            x = fvk.stitch_tiles(x, grid)
        return self.mlp(self.out(mixed.flatten(2), residual=x))

    def mlp(self, x: Tensor) -> Tensor:
        """x + MLP(norm2(x))."""
        raise NotImplementedError


class SiglipBlock(Block):
    """SigLIP2's: LayerNorm, biases, tanh GELU."""

    def __init__(self, config: VisionConfig, **made: Any) -> None:
        super().__init__(config, bias=True, **made)
        self.fc1 = Linear(config.dim, config.mlp, **made)
        self.fc2 = Linear(config.mlp, config.dim, **made)

    def mlp(self, x: Tensor) -> Tensor:
        w1, w2 = self.fc1.weight_for_op, self.fc2.weight_for_op
        norm = self.norm2.as_prologue()
        return fvk.gelu_mlp(x, norm, w1, self.fc1.bias, w2, self.fc2.bias, "tanh")


class AimBlock(Block):
    """AIMv2's: RMSNorm, no biases, SwiGLU with gate and up in one matrix."""

    def __init__(self, config: VisionConfig, **made: Any) -> None:
        super().__init__(config, bias=False, **made)
        self.gate_up = Linear(config.dim, 2 * config.mlp, bias=False, matrices=2, **made)
        self.down = Linear(config.mlp, config.dim, bias=False, **made)

    def mlp(self, x: Tensor) -> Tensor:
        return fvk.swiglu_mlp(
            x,
            self.norm2.weight,
            self.gate_up.weight_for_op,
            self.down.weight_for_op,
            self.norm2.eps,
        )
