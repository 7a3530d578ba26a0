"""The study's policies: named, of equal token budgets, counted right, and all of them run."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from bench import work
from flashvl import FlashVL, FlashVLConfig
from flashvl.image import image_to_inputs
from flashvl.train.policies import config_for, cost, grid_for, mix, policies
from flashvl_kernels import TileGrid, stitch_tiles

TINY = FlashVLConfig.tiny()
POLICIES = {policy.name: policy for policy in policies(TINY)}
NINE = [name for name in POLICIES if name.endswith("9 tiles")]
SIZE = (128, 128)


def test_the_axes_are_all_there() -> None:
    assert len(POLICIES) == len(policies(TINY))
    assert Counter(p.axis for p in POLICIES.values()) == {
        "one tile": 1, "plain": 1, "overlap": 10, "resolution": 9, "compression": 4,
    }  # fmt: skip
    grids = {p.name: grid_for(p, SIZE) for p in POLICIES.values()}
    assert grids["one tile"].tiles == 1
    tiles = {axis: {grids[p.name].tiles for p in POLICIES.values() if p.axis == axis}
             for axis in ("plain", "overlap", "compression", "resolution")}  # fmt: skip
    assert tiles == {"plain": {4}, "overlap": {4}, "compression": {4}, "resolution": {9}}
    rules = {(o, r) for o in (1, 2, 4) for r in ("crop", "mean", "linear")}
    for axis, more in (("overlap", {(0, "crop")}), ("resolution", set())):
        found = [grids[p.name] for p in POLICIES.values() if p.axis == axis]
        assert {(g.overlap, g.rule) for g in found} == rules | more


def test_nine_tiles_have_the_canvas_of_plain_ones_pixel_for_pixel() -> None:
    """Source and resolution are equal: what the canvas keeps is the picture, unscaled."""
    plain = grid_for(POLICIES["overlap 0 crop"], SIZE)
    picture = np.random.default_rng(3).integers(0, 256, (*SIZE, 3), np.uint8)
    for policy in (p for p in POLICIES.values() if p.axis == "resolution"):
        grid = grid_for(policy, SIZE)
        assert grid.canvas == plain.canvas == (16, 16)
        assert policy.image.tokens(grid) == 64
        framed = policy.framed(picture)
        assert tuple(8 * side for side in grid.canvas_full) == framed.shape[:2]
        ((rows, _),) = image_to_inputs(torch.from_numpy(framed), policy.image)
        crop = TileGrid(3, 3, 8, grid.overlap, "crop", grid.border)
        seen = stitch_tiles(rows, crop)[0].unflatten(0, (16, 16)).unflatten(2, (3, 8, 8))
        pixels = (seen.permute(0, 3, 1, 4, 2).reshape(*SIZE, 3) * 0.5 + 0.5) * 255
        torch.testing.assert_close(pixels, torch.from_numpy(picture).float(), atol=0.51, rtol=0)
        assert policy.spans(SIZE)
    assert POLICIES["overlap 2 crop"].framed(picture) is picture


@pytest.mark.parametrize("size", ((64, 128), (128, 64), (64, 64)))
def test_half_overlapping_tiles_hold_a_picture_of_any_shape_unscaled(size: tuple[int, int]) -> None:
    """The other overlaps need a border, which lies on all sides: squares only."""
    picture = torch.from_numpy(np.random.default_rng(3).integers(0, 256, (*size, 3), np.uint8))
    for policy in (p for p in POLICIES.values() if p.axis == "resolution"):
        assert policy.spans(size) == (policy.image.overlap == 4)
        if not policy.spans(size):
            continue
        grid = grid_for(policy, size)
        assert tuple(8 * side for side in grid.canvas) == size
        assert grid.tiles == {(64, 64): 1}.get(size, 3)
        ((rows, _),) = image_to_inputs(picture, policy.image)
        crop = TileGrid(grid.rows, grid.cols, 8, grid.overlap, "crop")
        seen = stitch_tiles(rows, crop)[0].unflatten(0, grid.canvas).unflatten(2, (3, 8, 8))
        pixels = (seen.permute(0, 3, 1, 4, 2).reshape(*size, 3) * 0.5 + 0.5) * 255
        torch.testing.assert_close(pixels, picture.float(), atol=0.51, rtol=0)


def test_the_frame_has_the_colour_of_the_edge() -> None:
    pictures = np.full((2, 128, 128, 3), 7, np.uint8)
    pictures[1] = 200
    pictures[:, 20:100, 20:100] = 90
    framed = POLICIES["overlap 2 mean, 9 tiles"].framed(pictures)
    assert framed.shape == (2, 160, 160, 3)
    assert (framed[0, :16] == 7).all() and (framed[1, :, -16:] == 200).all()
    assert (framed[:, 16:-16, 16:-16] == pictures).all()


@pytest.mark.parametrize("size", ((128, 128), (64, 128), (128, 64)))
def test_compression_is_compared_at_equal_tokens(size: tuple[int, int]) -> None:
    tokens = {p.image.tokens(grid_for(p, size)) for p in POLICIES.values()
              if p.axis == "compression"}  # fmt: skip
    assert tokens == {{(128, 128): 49}.get(size, 28)}


def test_tokens_and_flops_by_hand() -> None:
    """overlap 2 linear on 128x128: 4 tiles of 64 patches; a canvas of 14x14, pooled to 7x7."""
    found = cost(TINY, POLICIES["overlap 2 linear"], SIZE, text_tokens=11)
    assert (found.tiles, found.tokens) == (4, 49)
    layer = 64 * (128 * 3 * 128 + 128 * 128 + 3 * 128 * 344) + 2 * 64 * 64 * 128
    vision = 4 * (4 * layer + 64 * 192 * 128)
    adapter = 49 * (128 * 256 + 256 * 256 + 256 * 192)
    assert found.image_flops == 2 * (vision + adapter)
    qkv, rest = 192 * (3 + 2) * 64, 192 * 192 + 3 * 192 * 384
    prefill = 60 * 4 * qkv + (3 * 60 + 1) * rest + 192 * 512
    pairs = 3 * (60 * 61 // 2) + 60  # the last layer has one query
    assert found.prefill_flops == 2 * prefill + 2 * 2 * pairs * 192


def test_flops_agree_with_the_benchmarks() -> None:
    for policy in POLICIES.values():
        found = cost(TINY, policy, SIZE, text_tokens=20)
        run = config_for(TINY, policy)
        vision = work.vision(run.vision, 0, 2).flops * found.tiles
        assert found.image_flops == vision + work.adapter(run.adapter, found.tokens, 0, 2).flops
        assert found.prefill_flops == work.prefill(run.decoder, found.tokens + 20, 0, 2).flops


@pytest.mark.parametrize("name", POLICIES)
def test_a_model_runs_under_every_policy(name: str) -> None:
    policy = POLICIES[name]
    model = FlashVL.random(config_for(TINY, policy), dtype=torch.float32)
    picture = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8))
    ((tiles, grid),) = image_to_inputs(picture, policy.image)
    with torch.no_grad():
        rows = model.embed_images(tiles, grid)
    assert rows.shape == (1, cost(TINY, policy, SIZE, 0).tokens, TINY.decoder.dim)
    assert rows.isfinite().all() and rows.std() > 0


@pytest.mark.parametrize("family", ("pool", "shuffle"))
def test_weights_move_between_the_policies_of_a_family(family: str) -> None:
    members = [p for p in POLICIES.values() if p.family == family]
    first = FlashVL.random(config_for(TINY, members[0]), dtype=torch.float32)
    for policy in members[1:]:
        model = FlashVL(config_for(TINY, policy), "cpu", torch.float32)
        model.load_weights(first.released_state())
    drawn = Counter(mix(TINY, family, 1, n).name for n in range(900))
    assert set(drawn) == {p.name for p in members}
    assert mix(TINY, family, 1, 7) == mix(TINY, family, 1, 7)
    wide = {mix(TINY, family, 1, n, (64, 128)).axis for n in range(200)}
    assert len(wide) == (5 if family == "pool" else 1)
    unscaled = {mix(TINY, family, 1, n, (64, 128)).name for n in range(200)} & set(NINE)
    assert unscaled <= {f"overlap 4 {rule}, 9 tiles" for rule in ("crop", "mean", "linear")}
    if family == "pool":  # 18 weights, the rules of nine tiles a third each
        nine = sum(count for name, count in drawn.items() if "9 tiles" in name)
        assert nine / 900 == pytest.approx(3 / 18, abs=0.04)
