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

TINY = FlashVLConfig.tiny()
POLICIES = {policy.name: policy for policy in policies(TINY)}
SIZE = (128, 128)


def test_the_axes_are_all_there() -> None:
    assert len(POLICIES) == len(policies(TINY))
    assert Counter(p.axis for p in POLICIES.values()) == {
        "one tile": 1, "plain": 1, "overlap": 10, "compression": 4,
    }  # fmt: skip
    grids = {p.name: grid_for(p, SIZE) for p in POLICIES.values()}
    assert grids["one tile"].tiles == 1
    assert {g.tiles for name, g in grids.items() if name != "one tile"} == {4}
    assert {(g.overlap, g.rule) for name, g in grids.items() if "overlap" in name} == {
        (0, "crop"), *((o, r) for o in (1, 2, 4) for r in ("crop", "mean", "linear")),
    }  # fmt: skip


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
    assert {mix(TINY, family, 1, n).name for n in range(200)} == {p.name for p in members}
    assert mix(TINY, family, 1, 7) == mix(TINY, family, 1, 7)
