"""Saving and loading in the released layout: names, shards, formats, and errors that list keys."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import flashvl_kernels as fvk
from flashvl import CheckpointError, FlashVL, FlashVLConfig
from flashvl.config import AdapterConfig, DecoderConfig, ImagePolicy, VisionConfig
from flashvl.layers import Linear
from flashvl.parameters import resolve_layout
from flashvl.released import released
from flashvl.weight_files import INDEX, SINGLE


def small(kind: str = "siglip2", tie: bool = False) -> FlashVLConfig:
    vision = VisionConfig(kind, 48, 2, 2, 56, 4, 16, 1e-6)  # type: ignore[arg-type]
    decoder = DecoderConfig(32, 2, 2, 1, 16, 40, 96, max_positions=64, tie_embeddings=tie)
    policy = ImagePolicy(compression={"kind": "shuffle", "factor": 2})
    return FlashVLConfig(vision, AdapterConfig(192, 72, 32), decoder, policy)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[FlashVL, Path]:
    model = FlashVL.random(small(), dtype=torch.float32)
    model.save_pretrained(tmp_path)
    return model, tmp_path


def edit(folder: Path, change) -> None:
    """Rewrite model.safetensors after `change`(state)."""
    state = load_file(folder / SINGLE)
    change(state)
    save_file(state, folder / SINGLE)


def equal(a: FlashVL, b: FlashVL) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def same_weights(a: FlashVL, b: FlashVL) -> bool:
    """Equal, whatever the layouts."""
    ours, theirs = a.released_state(), b.released_state()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


@pytest.mark.parametrize("kind", ["siglip2", "aimv2"])
@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("shard_bytes", [10**9, 40_000])
def test_save_and_load(kind: str, tie: bool, shard_bytes: int, tmp_path: Path) -> None:
    model = FlashVL.random(small(kind, tie), seed=3, dtype=torch.float32)
    model.save_pretrained(tmp_path, shard_bytes)
    files = sorted(p.name for p in tmp_path.glob("*.safetensors*"))
    assert (len(files) > 3) == (shard_bytes < 10**9) and (INDEX in files) == (len(files) > 1)
    again = FlashVL.from_pretrained(tmp_path, dtype=torch.float32)
    assert again.config == model.config and equal(model, again)
    assert not any(p.requires_grad for p in again.parameters()) and not again.training


def test_panels_hold_the_weights_of_rows_and_become_rows_to_be_trained(tmp_path: Path) -> None:
    rows, panels = (
        FlashVL.random(small(), dtype=torch.float32, layout=layout) for layout in ("rows", "panels")
    )
    assert same_weights(rows, panels) and not equal(rows, panels)
    assert "packed_data" not in str(rows.state_dict().keys())
    assert panels.decoder.layers[0].qkv.weight is None

    panels.save_pretrained(tmp_path)
    assert equal(FlashVL.from_pretrained(tmp_path, dtype=torch.float32, layout="rows"), rows)
    half = FlashVL.random(small(), dtype=torch.bfloat16, layout="panels")
    assert equal(half, copy.deepcopy(panels).bfloat16())

    other = FlashVL.random(small(), seed=8, dtype=torch.float32, layout="panels")
    data = other.decoder.layers[0].qkv.packed_data
    other.load_weights(rows.released_state())
    assert equal(other, panels) and other.decoder.layers[0].qkv.packed_data is data

    panels.decoder.requires_grad_()
    assert panels.decoder.head.weight.requires_grad
    assert panels.vision.blocks[0].qkv.weight is None, "only the part that is to be trained"
    panels.requires_grad_(False)
    assert panels.vision.blocks[0].qkv.weight is None
    panels.requires_grad_()
    assert equal(panels, rows)
    assert all(parameter.requires_grad for parameter in panels.parameters())


def test_integer_weights_stay_packed_when_gradients_are_asked_for() -> None:
    model = FlashVL.random(small(), weights="int8", layout="panels").requires_grad_()
    assert model.decoder.layers[0].qkv.packed.format == "int8"
    assert model.vision.patch.weight.requires_grad


def test_layouts() -> None:
    with pytest.raises(ValueError, match="layout is 'tiles'; needs one of 'auto', 'rows', 'panels"):
        FlashVL.random(small(), layout="tiles")
    with fvk.backend("torch"):
        assert resolve_layout("auto", torch.device("cpu")) == "rows"
    assert resolve_layout("auto", torch.device("cuda")) == "rows"
    assert resolve_layout("panels", torch.device("cpu")) == "panels"


def test_a_later_save_replaces_an_earlier_one(tmp_path: Path) -> None:
    first = FlashVL.random(small(), seed=1, dtype=torch.float32)
    second = FlashVL.random(small(), seed=2, dtype=torch.float32)
    for shard_bytes in (40_000, 10**9, 40_000):
        first.save_pretrained(tmp_path, shard_bytes)
        second.save_pretrained(tmp_path, 50_000 - shard_bytes if shard_bytes == 40_000 else 10**9)
        assert equal(FlashVL.from_pretrained(tmp_path, dtype=torch.float32), second)


def test_names_are_the_released_ones(saved: tuple[FlashVL, Path]) -> None:
    _, folder = saved
    model = FlashVL.from_pretrained(folder, dtype=torch.float32, layout="rows")
    state = load_file(folder / SINGLE)
    block, layer = model.vision.blocks[1], model.decoder.layers[1]
    qkv = [f"vit.encoder.layers.1.self_attn.{x}_proj.weight" for x in "qkv"]
    assert torch.equal(torch.cat([state[k] for k in qkv]), block.qkv.weight)
    qkv = [f"llm.model.layers.1.self_attn.{x}_proj.bias" for x in "qkv"]
    assert torch.equal(torch.cat([state[k] for k in qkv]), layer.qkv.bias)
    gate_up = [f"llm.model.layers.1.mlp.{x}_proj.weight" for x in ("gate", "up")]
    assert torch.equal(torch.cat([state[k] for k in gate_up]), layer.gate_up.weight)
    assert state["vit.embeddings.patch_embedding.weight"].shape == (48, 3, 4, 4)
    assert torch.equal(state["adp.p0.0.weight"], model.adapter.norm.weight)
    assert torch.equal(state["adp.p0.3.weight"], model.adapter.fc2.weight)
    assert torch.equal(state["llm.lm_head.weight"], model.decoder.head.weight)


def test_every_parameter_is_covered_exactly_once() -> None:
    for name in ("static_2b", "dynamic_2b", "dynamic_iss_2b", "tiny"):
        config = getattr(FlashVLConfig, name)()
        parameters = dict(FlashVL(config, device="meta").named_parameters())
        covered = dict.fromkeys(parameters, 0)
        for piece in released(config):
            assert piece.first == covered[piece.parameter], piece
            covered[piece.parameter] += piece.rows
        assert covered == {k: p.shape[0] for k, p in parameters.items()}


def test_load_weights_copies_in_place(saved: tuple[FlashVL, Path]) -> None:
    model, _ = saved
    other = FlashVL.random(small(), seed=9, dtype=torch.float32).requires_grad_()
    parameter = other.decoder.layers[0].qkv.weight
    other.load_weights(model.released_state())
    assert same_weights(model, other)
    assert other.decoder.layers[0].qkv.weight is parameter and parameter.requires_grad


@pytest.mark.parametrize(
    ("weights", "layout"),
    [("int8", "rows"), ("int4", "rows"), *((w, "panels") for w in ("bf16", "int8", "int4"))],
)
def test_packing_while_loading_equals_packing_the_whole(
    weights: str, layout: str, saved: tuple[FlashVL, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, folder = saved
    kind = {"dtype": torch.bfloat16, "weights": weights, "layout": layout}
    once = FlashVL.from_pretrained(folder, **kind)
    # Blocks of one panel, 16 rows, cross the borders of fused pieces and leave a remainder.
    monkeypatch.setattr("flashvl.parameters.BLOCK_BYTES", 1)
    blocks = FlashVL.from_pretrained(folder, **kind)
    assert equal(once, blocks)
    assert equal(once, FlashVL.random(small(), **kind))
    again = FlashVL.random(small(), seed=5, **kind)
    again.load_weights(load_file(folder / SINGLE))
    assert equal(once, again)
    linear = {name: m for name, m in once.named_modules() if isinstance(m, Linear)}
    # 72 and 56 rows are no whole panels, nor is a gate of 40: such weights stay rows, and floats
    # plain parameters.
    whole = {name for name, m in linear.items() if m.shape[0] % (16 * m.matrices) == 0}
    packed = {name for name, m in linear.items() if m.packed is not None}
    panels = {name for name in packed if linear[name].packed.layout == "panels"}
    integers = linear.keys() - {"vision.patch"}  # the patches' weight stays in floats
    assert panels == (whole if layout == "panels" else set())
    assert packed == panels | (set() if weights == "bf16" else integers)
    assert 0 < len(whole) < len(linear) == 1 + 2 * 4 + 3 + 2 * 4 + 1
    if weights == "bf16":
        return
    with pytest.raises(CheckpointError, match="integer weights are not saved"):
        once.save_pretrained(folder / "packed")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dtype_is_converted_on_load(dtype: torch.dtype, saved: tuple[FlashVL, Path]) -> None:
    model, folder = saved
    assert equal(FlashVL.from_pretrained(folder, dtype=dtype), model.to(dtype))


def test_mixed_dtypes_in_a_file_are_converted(saved: tuple[FlashVL, Path]) -> None:
    model, folder = saved

    def mix(state: dict) -> None:
        for i, key in enumerate(state):
            state[key] = state[key].to((torch.float64, torch.float32)[i % 2])

    edit(folder, mix)
    assert equal(FlashVL.from_pretrained(folder, dtype=torch.float32), model)


def test_every_wrong_key_is_listed_with_both_shapes(saved: tuple[FlashVL, Path]) -> None:
    _, folder = saved

    def spoil(state: dict) -> None:
        del state["vit.post_layernorm.bias"], state["adp.proj.weight"]
        state["llm.model.norm.weight"] = torch.zeros(31)
        state["vit.embeddings.patch_embedding.weight"] = torch.zeros(48, 48)
        state["llm.model.layers.2.mlp.up_proj.weight"] = torch.zeros(40, 32)
        state["extra"] = torch.zeros(())

    edit(folder, spoil)
    with pytest.raises(CheckpointError) as caught:
        FlashVL.from_pretrained(folder)
    lines = [line.strip() for line in str(caught.value).splitlines()]
    assert lines[0].endswith("does not fit its config, 6 keys differ:")
    assert sorted(lines[1:]) == [
        "misshapen  llm.model.norm.weight: needs [32], has [31]",
        "misshapen  vit.embeddings.patch_embedding.weight: needs [48, 3, 4, 4], has [48, 48]",
        "missing    adp.proj.weight: needs [32, 72], has nothing",
        "missing    vit.post_layernorm.bias: needs [48], has nothing",
        "unexpected extra: needs nothing, has []",
        "unexpected llm.model.layers.2.mlp.up_proj.weight: needs nothing, has [40, 32]",
    ]
    state = load_file(folder / SINGLE)
    with pytest.raises(CheckpointError, match=r"state_dict does not fit .*6 keys"):
        FlashVL.random(small()).load_weights(state)


def test_what_the_model_does_not_use_is_ignored(saved: tuple[FlashVL, Path]) -> None:
    model, folder = saved

    def add(state: dict) -> None:
        state["vit.head.probe"] = torch.zeros(1, 1, 48)
        state["vit.head.attention.in_proj_weight"] = torch.zeros(144, 48)
        state["vit.embeddings.position_ids"] = torch.zeros(1, 16, dtype=torch.int64)
        state["llm.model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)

    edit(folder, add)
    assert equal(FlashVL.from_pretrained(folder, dtype=torch.float32), model)


def test_the_wrapper_of_the_vision_tower_is_seen_through(saved: tuple[FlashVL, Path]) -> None:
    model, folder = saved

    def wrap(state: dict) -> None:
        for key in [k for k in state if k.startswith("vit.")]:
            state[key.replace("vit.", "vit.vision_model.")] = state.pop(key)

    edit(folder, wrap)
    assert equal(FlashVL.from_pretrained(folder, dtype=torch.float32), model)


def test_tied_head(saved: tuple[FlashVL, Path], tmp_path: Path) -> None:
    _, folder = saved
    edit(folder, lambda state: state.pop("llm.lm_head.weight"))
    with pytest.raises(CheckpointError, match=r"missing +llm\.lm_head\.weight[^$]*tie_embeddings"):
        FlashVL.from_pretrained(folder)
    tied = dataclasses.replace(
        small(), decoder=dataclasses.replace(small().decoder, tie_embeddings=True)
    )
    tied.to_json(folder / "config.json")
    model = FlashVL.from_pretrained(folder, dtype=torch.float32)
    assert model.decoder.head is None
    table, states = model.decoder.table, torch.randn(3, 32)
    want = torch.nn.functional.rms_norm(states, (32,), model.decoder.norm.weight, 1e-6) @ table.T
    assert torch.allclose(model.decoder.logits(states), want, atol=1e-5)
    # A copy of the tied head in the file is not an error.
    edit(folder, lambda state: state.update({"llm.lm_head.weight": table.clone()}))
    assert equal(FlashVL.from_pretrained(folder, dtype=torch.float32), model)


def test_random_is_the_same_for_a_seed_and_close_in_any_dtype() -> None:
    a, b = (FlashVL.random(small(), seed=4, dtype=torch.float32) for _ in range(2))
    assert equal(a, b)
    assert not equal(a, FlashVL.random(small(), seed=5, dtype=torch.float32))
    assert equal(FlashVL.random(small(), seed=4, dtype=torch.bfloat16), a.bfloat16())
    wide = FlashVL.random(FlashVLConfig.tiny(), dtype=torch.float32, layout="rows")
    weights = [m.weight for m in wide.modules() if isinstance(m, Linear)]
    assert all(abs(w.std() * (3 * w.shape[1]) ** 0.5 - 1) < 0.05 for w in weights)
    first = [w.flatten()[:64] for w in weights]
    assert all(not torch.equal(x, y) for i, x in enumerate(first) for y in first[:i])


def test_big_random_matrices_have_no_equal_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flashvl.parameters.NORMALS", 1009)
    table = FlashVL.random(small(), dtype=torch.float32).decoder.table
    assert len(table.unique(dim=0)) == 96
    packed = FlashVL.random(small(), dtype=torch.float32, weights="int8")
    monkeypatch.setattr("flashvl.parameters.BLOCK_BYTES", 5 * 32 * 4)
    assert equal(packed, FlashVL.random(small(), dtype=torch.float32, weights="int8"))


def test_tokenizer_files_travel_with_the_weights(
    saved: tuple[FlashVL, Path], tmp_path: Path
) -> None:
    _, folder = saved
    added = [{"id": 2 + i, "content": text, "special": True, "single_word": False, "lstrip": False,
              "rstrip": False, "normalized": False}
             for i, text in enumerate(("<|im_start|>", "<|im_end|>"))]  # fmt: skip
    pre = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    data = {"version": "1.0", "added_tokens": added, "normalizer": None, "pre_tokenizer": pre,
            "post_processor": None, "decoder": pre,
            "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}}  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(data))
    model = FlashVL.from_pretrained(folder)
    assert model.tokenizer is not None and model.tokenizer.im_end == 3
    model.save_pretrained(tmp_path / "copy")
    assert FlashVL.from_pretrained(tmp_path / "copy").tokenizer.encode("ab") == [0, 1]
