"""FlashVLConfig: known sizes, JSON there and back, and errors that name the field."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flashvl import ConfigError, FlashVL, FlashVLConfig
from flashvl.config import ImagePolicy, VisionConfig

KNOWN = ("static_2b", "dynamic_2b", "dynamic_iss_2b", "tiny")


def known(name: str) -> FlashVLConfig:
    return getattr(FlashVLConfig, name)()


def changed(name: str, part: str, **fields: object) -> dict:
    out = known(name).to_json()
    out[part].update(fields)
    return out


@pytest.mark.parametrize("name", KNOWN)
def test_json_there_and_back(name: str, tmp_path: Path) -> None:
    config = known(name)
    path = tmp_path / "config.json"
    config.to_json(path)
    assert FlashVLConfig.from_json(path) == config
    assert FlashVLConfig.from_json(json.loads(path.read_text())) == config


def test_parameter_counts_are_the_published_ones() -> None:
    def count(name: str, part: str) -> float:
        module = getattr(FlashVL(known(name), device="meta"), part)
        return sum(p.numel() for p in module.parameters()) / 1e6

    # The published 428.8 M of SigLIP2-so400m are with the pooling head that nobody reads: four
    # square matrices, an MLP, a LayerNorm and a probe.
    dim, mlp = 1152, 4304
    head = 4 * dim * (dim + 1) + dim * mlp * 2 + mlp + dim + 2 * dim + dim
    assert count("static_2b", "vision") + head / 1e6 == pytest.approx(428.8, abs=0.05)
    assert count("dynamic_2b", "vision") == pytest.approx(682.0, abs=0.05)
    # Qwen2-1.5B's 1543.7 M, and 151936 x 1536 once more for the separate lm_head.
    assert count("static_2b", "decoder") == pytest.approx(1543.7 + 233.4, abs=0.05)
    assert 2.0 < sum(count("tiny", part) for part in ("vision", "adapter", "decoder")) < 5.0


def test_tokens_of_the_three_policies() -> None:
    static, dynamic, iss = (known(name).image for name in KNOWN[:3])
    assert static.tokens(static.grid(1, 1)) == 256
    assert dynamic.tokens(dynamic.grid(2, 3)) == 6 * 256
    # Reading H1: every 32x32 tile keeps its 24x24 core, whatever the grid.
    assert iss.grid(2, 3).canvas == (48, 72)
    assert iss.tokens(iss.grid(1, 1)) == 576
    assert iss.tokens(iss.grid(2, 3)) == 6 * 576


def test_readings_h2_and_h3_are_configurations() -> None:
    h2 = changed("dynamic_iss_2b", "image", border=0, rule="mean",
                 compression={"kind": "adaptive", "out": [24, 24]})  # fmt: skip
    image = FlashVLConfig.from_json(h2).image
    assert [image.tokens(image.grid(*g)) for g in ((1, 1), (3, 4))] == [576, 576]
    h3 = changed("dynamic_iss_2b", "vision", tile_px=336, positions=1024)
    h3["image"].update(overlap=0, border=0)
    config = FlashVLConfig.from_json(h3)
    assert config.image.tokens(config.image.grid(1, 1)) == 576
    assert FlashVL(config, device="meta").vision.positions.shape == (1024, 1536)


def test_adaptive_output_is_half_of_each_canvas_rounded_up() -> None:
    policy = ImagePolicy(stitch=True, overlap=1, max_tiles=2, tile=8, patch=8,
                         compression={"kind": "adaptive", "factor": 2})  # fmt: skip
    outs = [policy.compression_for(policy.grid(*g)).out for g in ((1, 1), (1, 2), (2, 1))]
    assert outs == [(4, 4), (4, 8), (8, 4)]


def test_candidates_are_every_grid_in_range() -> None:
    policy = ImagePolicy(min_tiles=2, max_tiles=4)
    assert policy.candidates() == ((1, 2), (2, 1), (1, 3), (3, 1), (1, 4), (2, 2), (4, 1))
    assert ImagePolicy(max_tiles=2, grids=((1, 2),)).candidates() == ((1, 2),)


def test_hugging_face_bookkeeping_is_accepted() -> None:
    given = known("tiny").to_json() | {
        "torch_dtype": "bfloat16", "transformers_version": "4.49.0", "_name_or_path": "x",
        "auto_map": {"AutoModel": "modeling.FlashVL"},
    }  # fmt: skip
    assert FlashVLConfig.from_json(given) == known("tiny")


@pytest.mark.parametrize(
    ("part", "fields", "error"),
    [
        ("vision", {"hidden": 3}, r"unknown field vision\.hidden"),
        ("vision", {"layer": 3}, r"unknown field vision\.layer; did you mean 'layers'"),
        ("decoder", {"rope_thta": 1.0}, r"rope_thta; did you mean 'rope_theta'"),
        ("image", {"overlapp": 1}, r"image\.overlapp; did you mean 'overlap'"),
        ("vision", {"kind": "clip"}, r"vision\.kind is 'clip'; it needs one of 'siglip2', 'aimv2'"),
        ("vision", {"dim": "128"}, r"vision\.dim is '128'; it needs a whole number"),
        ("vision", {"dim": 128.0}, r"vision\.dim is 128\.0; it needs a whole number"),
        ("vision", {"dim": True}, r"vision\.dim is True; it needs a whole number"),
        ("vision", {"layers": 0}, r"vision\.layers is 0; it must be above zero"),
        ("vision", {"eps": float("nan")}, r"vision\.eps is nan; it needs a number"),
        ("vision", {"heads": 3}, r"vision\.dim is 128, which vision\.heads 3 does not divide"),
        ("vision", {"tile_px": 60}, r"vision\.tile_px is 60, which vision\.patch 8"),
        ("vision", {"positions": 10}, r"vision\.positions is 10, but a tile .* 64 patches"),
        ("decoder", {"kv_heads": 2}, r"decoder\.heads is 3, which decoder\.kv_heads 2"),
        ("decoder", {"head_dim": 63}, r"decoder\.head_dim is 63; rotation needs an even"),
        ("decoder", {"vocab": -1}, r"decoder\.vocab is -1; it must be above zero"),
        ("decoder", {"tie_embeddings": "yes"}, r"tie_embeddings is 'yes'; it needs true or false"),
        ("decoder", {"dim": 256}, r"adapter\.output is 192, but decoder\.dim is 256"),
        ("adapter", {"input": 512}, r"adapter\.input is 512, but vision\.dim 128 .* 128 channels"),
        ("image", {"mean": [0.5, 0.5]}, r"image\.mean is .*; it needs a list of 3 x a number"),
        ("image", {"std": [0.5, 0.0, 0.5]}, r"image\.std .* above zero"),
        ("image", {"max_tiles": 0}, r"image\.max_tiles 0"),
        ("image", {"overlap": -1}, r"image\.overlap is -1; it cannot be negative"),
        ("image", {"overlap": 5}, r"overlap is 5 with tile 8"),
        ("image", {"border": 4}, r"border is 4 with tile 8"),
        ("image", {"stitch": False}, r"set image\.stitch to true"),
        ("image", {"rule": "blend"}, r"image\.rule is 'blend'; it needs one of 'crop'"),
        ("image", {"grids": []}, r"image\.grids is empty"),
        ("image", {"grids": [[1, 3]]}, r"image\.grids holds \[1, 3\]"),
        ("image", {"grids": [[1]]}, r"image\.grids is"),
        ("image", {"tile": 9}, r"image\.tile is 9, but the vision part makes it 8"),
        ("image", {"compression": {"kind": "fold"}}, r"image\.compression .*fold"),
        ("image", {"compression": {"factor": 2}}, r'has no "kind"'),
        ("image", {"compression": {"kind": "none", "facter": 2}}, r"did you mean 'factor'"),
        ("image", {"compression": {"kind": "average", "factor": 3}}, r"does not divide"),
    ],
)  # fmt: skip
def test_errors_name_the_field(part: str, fields: dict, error: str) -> None:
    with pytest.raises(ConfigError, match=error):
        FlashVLConfig.from_json(changed("tiny", part, **fields))


def test_errors_of_whole_parts(tmp_path: Path) -> None:
    good = known("tiny").to_json()
    with pytest.raises(ConfigError, match="unknown field visionn; did you mean 'vision'"):
        FlashVLConfig.from_json(good | {"visionn": {}})
    with pytest.raises(ConfigError, match="no 'decoder' part"):
        FlashVLConfig.from_json({k: v for k, v in good.items() if k != "decoder"})
    with pytest.raises(ConfigError, match="vision is a int; it needs an object"):
        FlashVLConfig.from_json(good | {"vision": 3})
    short = {k: v for k, v in good["vision"].items() if k != "mlp"}
    with pytest.raises(ConfigError, match="vision has no field 'mlp'"):
        FlashVLConfig.from_json(good | {"vision": short})
    path = tmp_path / "config.json"
    for text, error in (("", "not JSON"), ("{", "not JSON"), ("[1]", "needs an object")):
        path.write_text(text)
        with pytest.raises(ConfigError, match=error):
            FlashVLConfig.from_json(path)
    path.write_bytes(b"\xff\xfe\x00{")
    with pytest.raises(ConfigError, match="not JSON"):
        FlashVLConfig.from_json(path)
    with pytest.raises(ConfigError, match=r"cannot read .*No such file"):
        FlashVLConfig.from_json(tmp_path / "none.json")


def test_vision_sizes() -> None:
    vision = known("static_2b").vision
    assert (vision.head_dim, vision.tile, vision.tokens, vision.patch_values) == (72, 32, 1024, 768)
    with pytest.raises(ConfigError, match=r"vision\.patch is 0"):
        VisionConfig("aimv2", 64, 1, 1, 64, 0, 64, 1e-5)
