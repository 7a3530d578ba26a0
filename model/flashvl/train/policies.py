"""The policies that the stitching study compares: how a picture becomes tiles, and tiles tokens.

All of them share one encoder (64-px tiles of 8-px patches), one adapter and one decoder, so that a
model trained under a random mix of them can be evaluated under each:

    one tile      the picture scaled down to a single tile
    plain         tiles without overlap, each compressed alone
    overlapping   tiles that share 1, 2 or 4 patches, stitched by crop, mean or linear; at overlap 0
                  the rules are the same function, so only one policy stands for the three
    compression   pixel shuffle, average, adaptive and bilinear pooling of one stitched canvas, to
                  the same number of tokens

Pixel shuffle makes tokens of 4 C channels where pooling keeps C, so no one adapter takes both. A
family of policies is what one model can run under: "pool" (all but shuffle) and "shuffle".
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from flashvl.config import AdapterConfig, DecoderConfig, FlashVLConfig, ImagePolicy, VisionConfig
from flashvl.image import plan
from flashvl_kernels.tiles import TileGrid

SHUFFLE_FACTOR = 2
OVERLAPS = (0, 1, 2, 4)
RULES = ("crop", "mean", "linear")
GRIDS = ((1, 1), (1, 2), (2, 1), (2, 2))


@dataclass(frozen=True)
class Policy:
    """A named way from picture to tokens. axis: which question of the study it belongs to."""

    name: str
    axis: Literal["one tile", "plain", "overlap", "compression"]
    image: ImagePolicy

    @property
    def family(self) -> Literal["pool", "shuffle"]:
        return "shuffle" if self.image.compression["kind"] == "shuffle" else "pool"


@dataclass(frozen=True)
class PolicyCost:
    """What a policy asks for one picture and question.

    tiles, tokens: of the picture. image_flops: encoder and adapter; prefill_flops: the decoder over
    image and text tokens up to the first answer token.
    """

    tiles: int
    tokens: int
    image_flops: int
    prefill_flops: int

    @property
    def flops(self) -> int:
        return self.image_flops + self.prefill_flops


def _image(base: ImagePolicy, **changes: Any) -> ImagePolicy:
    plain: dict[str, Any] = {
        "max_tiles": 4, "grids": GRIDS, "thumbnail": False, "stitch": False, "overlap": 0,
        "border": 0, "rule": "crop", "compression": {"kind": "average", "factor": 2},
    }  # fmt: skip
    return dataclasses.replace(base, **{**plain, **changes})


def policies(config: FlashVLConfig) -> tuple[Policy, ...]:
    """Every policy of the study, for a model of `config`'s encoder."""
    base = config.image
    adaptive = {"kind": "adaptive", "factor": 2}

    def overlapping(overlap: int, rule: str) -> Policy:
        image = _image(base, stitch=True, overlap=overlap, rule=rule, compression=adaptive)
        return Policy(f"overlap {overlap} {rule}", "overlap", image)

    found = [
        Policy("one tile", "one tile", _image(base, max_tiles=1, grids=((1, 1),))),
        Policy("plain tiles", "plain", _image(base)),
        overlapping(0, "crop"),
        *(overlapping(overlap, rule) for overlap in OVERLAPS if overlap for rule in RULES),
    ]
    # An even canvas (overlap 2: 8 or 14 patches), so that all four kinds make the same tokens.
    for kind in ("shuffle", "average", "adaptive", "bilinear"):
        how = {"kind": kind, "factor": SHUFFLE_FACTOR}
        image = _image(base, stitch=True, overlap=2, rule="linear", compression=how)
        found.append(Policy(f"{kind} pooling" if kind != "shuffle" else "pixel shuffle",
                            "compression", image))  # fmt: skip
    return tuple(found)


def config_for(config: FlashVLConfig, policy: Policy) -> FlashVLConfig:
    """`config` under a policy. Its adapter's input changes for pixel shuffle, so weights move only
    between policies of one family."""
    channels = config.vision.dim
    if policy.family == "shuffle":
        channels *= SHUFFLE_FACTOR**2
    adapter = dataclasses.replace(config.adapter, input=channels)
    return dataclasses.replace(config, adapter=adapter, image=policy.image)


def mix(config: FlashVLConfig, family: str, seed: int, number: int) -> Policy:
    """The policy of training batch `number`: uniform over the family's policies, by (seed,
    number)."""
    offered = [policy for policy in policies(config) if policy.family == family]
    return offered[int(np.random.default_rng((seed, number)).integers(len(offered)))]


def grid_for(policy: Policy, size: tuple[int, int]) -> TileGrid:
    """The grid over a picture of `size` (H, W) px."""
    (grid,) = plan(*size, policy.image).grids
    return grid


def cost(
    config: FlashVLConfig, policy: Policy, size: tuple[int, int], text_tokens: int
) -> PolicyCost:
    """What a picture of `size` px and `text_tokens` tokens of question cost under a policy.

    FLOPs of the matrix products and of attention as plain tile attention computes it (2 per
    multiply-add). Norms and resampling are left out, and so is what crop saves in the last
    encoder layer, where patches that another tile owns are not computed.
    """
    run = config_for(config, policy)
    grid = grid_for(policy, size)
    tokens = policy.image.tokens(grid)
    image = grid.tiles * _vision_flops(run.vision) + tokens * _adapter_flops(run.adapter)
    return PolicyCost(grid.tiles, tokens, image, _prefill_flops(run.decoder, tokens + text_tokens))


def _vision_flops(c: VisionConfig) -> int:
    """One tile."""
    matrices = 2 if c.kind == "siglip2" else 3
    layer = 4 * c.dim**2 + matrices * c.dim * c.mlp
    products = 2 * c.tokens * (c.layers * layer + c.patch_values * c.dim)
    return products + c.layers * 4 * c.tokens**2 * c.dim


def _adapter_flops(c: AdapterConfig) -> int:
    """One token."""
    return 2 * (c.input * c.inner + c.inner**2 + c.inner * c.output)


def _prefill_flops(c: DecoderConfig, rows: int) -> int:
    """`rows` positions, of which the last layer's output projection and MLP see only the last."""
    qkv, rest = c.dim * c.qkv_width, c.heads * c.head_dim * c.dim + 3 * c.dim * c.mlp
    products = c.layers * rows * qkv + ((c.layers - 1) * rows + 1) * rest + c.dim * c.vocab
    pairs = (c.layers - 1) * rows * (rows + 1) // 2 + rows
    return 2 * products + 4 * pairs * c.heads * c.head_dim
