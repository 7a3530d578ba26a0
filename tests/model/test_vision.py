"""The encoders against transformers, and stitching inside the encoder against stitching after
it."""

from __future__ import annotations

import copy

import pytest
import torch

import flashvl_kernels as fvk
from flashvl import FlashVL, FlashVLConfig
from flashvl.config import AdapterConfig, DecoderConfig, ImagePolicy, VisionConfig
from flashvl_kernels import TileGrid
from tests.model.released_names import aimv2, relative_error, released, siglip

# Full width, two layers, 16 patches a tile.
SIGLIP = VisionConfig("siglip2", 1152, 2, 16, 4304, 16, 64, 1e-6)
AIMV2 = VisionConfig("aimv2", 1536, 2, 12, 4096, 14, 56, 1e-5)


def around(vision: VisionConfig, **image: object) -> FlashVLConfig:
    """A model whose adapter and decoder are as small as can be."""
    policy = ImagePolicy(compression={"kind": "none"}, **image)  # type: ignore[arg-type]
    decoder = DecoderConfig(64, 1, 1, 1, 64, 64, 32, max_positions=64)
    return FlashVLConfig(vision, AdapterConfig(vision.dim, 64, 64), decoder, policy)


def loaded(vision: VisionConfig, theirs: torch.nn.Module, dtype: torch.dtype) -> FlashVL:
    model = FlashVL.random(around(vision), dtype=dtype)
    rest = {k: v for k, v in model.released_state().items() if not k.startswith("vit.")}
    model.load_weights(rest | released(theirs))
    return model


def pixels(vision: VisionConfig, tiles: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(tiles, 3, vision.tile_px, vision.tile_px, generator=generator)


@pytest.mark.parametrize(
    ("vision", "build"), [(SIGLIP, siglip), (AIMV2, aimv2)], ids=["siglip2", "aimv2"]
)
@torch.no_grad()
def test_transformers_same_features(vision: VisionConfig, build) -> None:
    theirs = build(vision)
    x = pixels(vision, 2)
    ours = loaded(vision, theirs, torch.float32)
    want = theirs(x).last_hidden_state
    assert relative_error(ours.vision(x), want) < 1e-4
    # One image's tile must not see the other's.
    assert relative_error(ours.vision(x[1:]), want[1:]) < 1e-4

    low = copy.deepcopy(theirs).bfloat16()
    oracle = copy.deepcopy(low).double()
    want = oracle(x.bfloat16().double()).last_hidden_state
    naive = relative_error(low(x.bfloat16()).last_hidden_state, want)
    mine = relative_error(loaded(vision, low, torch.bfloat16).vision(x.bfloat16()), want)
    assert mine <= 1.1 * naive, f"bf16 error {mine:.2e}, transformers' {naive:.2e}"


@torch.no_grad()
def test_patch_rows_are_pixels_in_channel_row_column_order() -> None:
    model = FlashVL.random(FlashVLConfig.tiny(), dtype=torch.float32)
    x = pixels(model.config.vision, 2)
    rows = model.vision.patch_rows(x)
    # Patch (2, 5) of tile 1, channel 2, pixel (3, 4).
    assert rows[1, 2 * 8 + 5, 2 * 64 + 3 * 8 + 4] == x[1, 2, 2 * 8 + 3, 5 * 8 + 4]
    assert torch.equal(model.vision(rows), model.vision(x))


@pytest.mark.parametrize("kind", ["siglip2", "aimv2"])
@pytest.mark.parametrize(("overlap", "border"), [(2, 0), (1, 0), (2, 1), (4, 2), (0, 0)])
@torch.no_grad()
def test_stitching_inside_equals_stitching_after(kind: str, overlap: int, border: int) -> None:
    vision = VisionConfig(kind, 64, 2, 2, 96, 4, 32, 1e-6)  # type: ignore[arg-type]
    model = FlashVL.random(around(vision), dtype=torch.float32)
    for rows, cols in ((1, 1), (1, 3), (2, 2)):
        grid = TileGrid(rows, cols, vision.tile, overlap, "crop", border)
        x = pixels(vision, 2 * grid.tiles)
        inside = model.vision.stitched(x, grid)
        after = fvk.stitch_tiles(model.vision(x), grid)
        # Not bit for bit: a matrix product over fewer rows may sum in another order.
        assert relative_error(inside, after) < 1e-6


@pytest.mark.parametrize("rule", ["crop", "mean", "linear"])
@torch.no_grad()
def test_embed_images_stitches_then_compresses_then_adapts(rule: str) -> None:
    vision = VisionConfig("aimv2", 64, 2, 2, 96, 4, 32, 1e-6)
    policy = ImagePolicy(
        stitch=True, overlap=2, border=1, rule=rule,  # type: ignore[arg-type]
        max_tiles=4, compression={"kind": "adaptive", "factor": 2},
    )  # fmt: skip
    decoder = DecoderConfig(64, 1, 1, 1, 64, 64, 32, max_positions=64)
    config = FlashVLConfig(vision, AdapterConfig(64, 48, 64), decoder, policy)
    model = FlashVL.random(config, dtype=torch.float32)
    grid = config.image.grid(1, 2)
    x = pixels(vision, 4)

    canvas = fvk.stitch_tiles(model.vision(x), grid)
    height, width = grid.canvas
    assert (height, width) == (6, 12)
    pooled = torch.nn.functional.adaptive_avg_pool2d(
        canvas.view(2, height, width, 64).permute(0, 3, 1, 2), (3, 6)
    )
    flat = pooled.permute(0, 2, 3, 1).reshape(2, 18, 64)
    a = model.adapter
    hidden = torch.nn.functional.layer_norm(flat, (64,), a.norm.weight, a.norm.bias, a.norm.eps)
    plain = model.released_state()
    for name in ("adp.p0.1", "adp.p0.3"):
        hidden = torch.nn.functional.gelu(
            hidden @ plain[f"{name}.weight"].T + plain[f"{name}.bias"]
        )
    want = hidden @ plain["adp.proj.weight"].T + plain["adp.proj.bias"]

    got = model.embed_images(x, grid)
    assert relative_error(got, want) < 1e-5
    assert relative_error(model.embed_image(x[2:], grid), want[1]) < 1e-5
    assert got.shape[1] == config.image.tokens(grid)


@torch.no_grad()
def test_tiles_without_stitching_follow_one_another() -> None:
    vision = VisionConfig("siglip2", 64, 1, 2, 96, 4, 32, 1e-6)
    decoder = DecoderConfig(64, 1, 1, 1, 64, 64, 32, max_positions=64)
    policy = ImagePolicy(max_tiles=3)
    config = FlashVLConfig(vision, AdapterConfig(256, 48, 64), decoder, policy)
    model = FlashVL.random(config, dtype=torch.float32)
    x = pixels(vision, 3)
    together = model.embed_image(x, config.image.grid(1, 3))
    one_by_one = torch.cat([model.embed_image(x[i : i + 1]) for i in range(3)])
    assert relative_error(together, one_by_one) < 1e-6


def test_wrong_tiles_name_the_shape_needed() -> None:
    model = FlashVL.random(FlashVLConfig.tiny(), dtype=torch.float32)
    with pytest.raises(ValueError, match=r"pixel_values has shape .*needs \[tiles, 3, 64, 64\]"):
        model.vision(torch.zeros(1, 3, 60, 64))
    with pytest.raises(ValueError, match=r"patch rows \[tiles, 64, 192\]"):
        model.vision(torch.zeros(1, 64, 100))
    with pytest.raises(ValueError, match="3 tiles, but grid 1x2 has 2"):
        model.embed_images(torch.zeros(3, 3, 64, 64), model.config.image.grid(1, 2))
    with pytest.raises(ValueError, match="only 'crop' is stitched inside"):
        model.vision.stitched(torch.zeros(2, 3, 64, 64), model.config.image.grid(1, 2))
