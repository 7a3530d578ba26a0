"""The policies that the stitching study compares: how a picture becomes tiles, and tiles tokens.

All of them share one encoder (64-px tiles of 8-px patches), one adapter and one decoder, so that a
model trained under a random mix of them can be evaluated under each:

    one tile      the picture scaled down to a single tile
    plain         tiles without overlap, each compressed alone
    overlapping   tiles that share 1, 2 or 4 patches, stitched by crop, mean or linear; at overlap 0
                  the rules are the same function, so only one policy stands for the three
    resolution    overlapping tiles once more, at the resolution of plain tiles
    compression   pixel shuffle, average, adaptive and bilinear pooling of one stitched canvas, to
                  the same number of tokens

Four tiles that overlap span fewer pixels than four that do not (112 instead of 128 a side at an
overlap of 2), so the picture is scaled down: what overlap does to the seams and what it costs in
resolution come together. The resolution axis takes them apart. Three tiles a side, less a border,
give the canvas of plain tiles patch for patch whatever the overlap (BORDERS); the picture stands on
it unscaled, inside a margin that the border drops. Source, resolution and tokens are those of plain
tiles then; nine tiles instead of four is the price, and stands in the costs. A border lies on all
sides, so that works for square pictures only; but at an overlap of 4, half a tile, none is left,
and three tiles span a wide picture in the same way.

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

SQUARE = (128, 128)  # the pictures of the resolution axis
BORDERS = {1: 3, 2: 2, 4: 0}  # overlap: border, so that 3 * 8 - 2 * overlap - 2 * border = 16
SHUFFLE_FACTOR = 2
OVERLAPS = (0, 1, 2, 4)
RULES = ("crop", "mean", "linear")
GRIDS = ((1, 1), (1, 2), (2, 1), (2, 2))
UNSCALED = ((1, 1), (1, 3), (3, 1), (3, 3))  # grids of half-overlapping tiles
# What the tiny model's two configurations run under, by family: what was right most often.
SHIPPED = {"pool": "overlap 4 linear, 9 tiles", "shuffle": "pixel shuffle"}


@dataclass(frozen=True)
class Policy:
    """A named way from picture to tokens. axis: which question of the study it belongs to."""

    name: str
    axis: Literal["one tile", "plain", "overlap", "resolution", "compression"]
    image: ImagePolicy

    @property
    def family(self) -> Literal["pool", "shuffle"]:
        return "shuffle" if self.image.compression["kind"] == "shuffle" else "pool"

    @property
    def margin(self) -> int:
        """Pixels around the picture that the canvas' border drops again."""
        return self.image.border * self.image.patch

    def spans(self, size: tuple[int, int]) -> bool:
        """Whether a picture of `size` (H, W) px can be had under this policy."""
        if self.axis != "resolution":
            return True
        framed = framed_size(self, size)
        spans = (self.image.grid(*grid).canvas_full for grid in self.image.candidates())
        return any((h * self.image.patch, w * self.image.patch) == framed for h, w in spans)

    def framed(self, pictures: np.ndarray) -> np.ndarray:
        """Pictures uint8 [..., H, W, 3] inside their margin, in the colour of their edge."""
        if not self.margin:
            return pictures
        edge = [pictures[..., 0, :, :], pictures[..., -1, :, :],
                pictures[..., :, 0, :], pictures[..., :, -1, :]]  # fmt: skip
        colour = np.median(np.concatenate(edge, -2), -2).astype(np.uint8)
        height, width = (side + 2 * self.margin for side in pictures.shape[-3:-1])
        frame = np.empty((*pictures.shape[:-3], height, width, 3), np.uint8)
        frame[:] = colour[..., None, None, :]
        inside = slice(self.margin, -self.margin)
        frame[..., inside, inside, :] = pictures
        return frame


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

    def unscaled(overlap: int, rule: str) -> Policy:
        border = BORDERS[overlap]
        image = _image(
            base, max_tiles=9, grids=((3, 3),) if border else UNSCALED, stitch=True,
            overlap=overlap, border=border, rule=rule, compression=adaptive,
        )  # fmt: skip
        return Policy(f"overlap {overlap} {rule}, 9 tiles", "resolution", image)

    found = [
        Policy("one tile", "one tile", _image(base, max_tiles=1, grids=((1, 1),))),
        Policy("plain tiles", "plain", _image(base)),
        overlapping(0, "crop"),
        *(overlapping(overlap, rule) for overlap in OVERLAPS if overlap for rule in RULES),
        *(unscaled(overlap, rule) for overlap in BORDERS for rule in RULES),
    ]
    # An even canvas (overlap 2: 8 or 14 patches), so that all four kinds make the same tokens.
    for kind in ("shuffle", "average", "adaptive", "bilinear"):
        how = {"kind": kind, "factor": SHUFFLE_FACTOR}
        image = _image(base, stitch=True, overlap=2, rule="linear", compression=how)
        found.append(Policy(f"{kind} pooling" if kind != "shuffle" else "pixel shuffle",
                            "compression", image))  # fmt: skip
    return tuple(found)


def shipped(config: FlashVLConfig, family: str) -> Policy:
    """The policy of SHIPPED for a family."""
    return next(p for p in policies(config) if p.name == SHIPPED[family])


def config_for(config: FlashVLConfig, policy: Policy) -> FlashVLConfig:
    """`config` under a policy. Its adapter's input changes for pixel shuffle, so weights move only
    between policies of one family."""
    channels = config.vision.dim
    if policy.family == "shuffle":
        channels *= SHUFFLE_FACTOR**2
    adapter = dataclasses.replace(config.adapter, input=channels)
    return dataclasses.replace(config, adapter=adapter, image=policy.image)


def mix(
    config: FlashVLConfig, family: str, seed: int, number: int, size: tuple[int, int] = SQUARE
) -> Policy:
    """The policy of training batch `number`, whose pictures have `size`: by (seed, number), uniform
    over the family's policies that span it. The three rules of nine tiles count as one: they are
    the dearest, and the canvas is one that plain tiles train as well."""
    offered = [p for p in policies(config) if p.family == family and p.spans(size)]
    weights = np.array([1 / len(RULES) if p.axis == "resolution" else 1.0 for p in offered])
    rng = np.random.default_rng((seed, number))
    return offered[int(rng.choice(len(offered), p=weights / weights.sum()))]


def framed_size(policy: Policy, size: tuple[int, int]) -> tuple[int, int]:
    """(H, W) of a picture of `size` px inside its margin."""
    return size[0] + 2 * policy.margin, size[1] + 2 * policy.margin


def grid_for(policy: Policy, size: tuple[int, int]) -> TileGrid:
    """The grid over a picture of `size` (H, W) px."""
    (grid,) = plan(*framed_size(policy, size), policy.image).grids
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
