"""Damaged and malicious checkpoint folders: each gives a CheckpointError that names the file."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from flashvl import CheckpointError, ConfigError, FlashVL, FlashVLConfig
from flashvl.config import AdapterConfig, DecoderConfig, ImagePolicy, VisionConfig
from flashvl.weight_files import INDEX, SINGLE


def small() -> FlashVLConfig:
    vision = VisionConfig("aimv2", 32, 1, 1, 32, 4, 8, 1e-6)
    decoder = DecoderConfig(32, 1, 1, 1, 32, 32, 64, max_positions=64)
    policy = ImagePolicy(compression={"kind": "none"})
    return FlashVLConfig(vision, AdapterConfig(32, 32, 32), decoder, policy)


@pytest.fixture
def single(tmp_path: Path) -> Path:
    FlashVL.random(small(), dtype=torch.float32).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    FlashVL.random(small(), dtype=torch.float32).save_pretrained(tmp_path / "model", 40_000)
    assert (tmp_path / "model" / INDEX).exists()
    return tmp_path / "model"


def refused(folder: Path, error: str) -> None:
    with pytest.raises(CheckpointError, match=error):
        FlashVL.from_pretrained(folder)


def header(length: int, text: bytes = b"") -> bytes:
    return length.to_bytes(8, "little") + text


def whole(entries: dict, data: bytes = b"") -> bytes:
    text = json.dumps(entries).encode()
    return header(len(text), text) + data


@pytest.mark.parametrize("keep", [0.999, 0.5, 0.01])
def test_cut_short(keep: float, single: Path) -> None:
    path = single / SINGLE
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    refused(single, r"model\.safetensors (should have \d+ bytes|is cut short)")


def test_one_byte_short_and_one_too_many(single: Path) -> None:
    path = single / SINGLE
    data = path.read_bytes()
    for changed in (data[:-1], data + b"\0"):
        path.write_bytes(changed)
        refused(single, rf"should have {len(data)} bytes by its header, but has {len(changed)}")


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", r"model\.safetensors is empty \(0 bytes\)"),
        (b"\x01\x02", r"cut short or no safetensors file"),
        (header(2**63), r"header claims 9223372036854775808 bytes, but the file has 8"),
        (header(2**40) + b"{}", r"header claims 1099511627776 bytes"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (header(2, b"[]"), "no valid safetensors header"),
        (header(4, b"null"), "no valid safetensors header"),
        (header(9, b'{"a": 1}\n'), "no valid safetensors header"),
        (header(3, b"\xff\xfe\xfd"), "no valid safetensors header"),
        (whole({"a": {"dtype": "F32", "shape": [2]}}), "no valid safetensors header"),
        (whole({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, b"1234"),
         "impossible shape"),
        (whole({"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 4]}}, b"1234"),
         "no valid safetensors file"),
        (whole({"a": {"dtype": "F32", "shape": [2**62, 8], "data_offsets": [0, 4]}}, b"1234"),
         "no valid safetensors file"),
        (whole({"a": {"dtype": "Q7", "shape": [1], "data_offsets": [0, 4]}}, b"1234"),
         "no valid safetensors file"),
        (whole({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, b"12345678"),
         "no valid safetensors file"),
        (whole({"a": {"dtype": "F32", "shape": [1], "data_offsets": "xy"}}), "safetensors header"),
    ],
)  # fmt: skip
def test_no_safetensors_file(data: bytes, error: str, single: Path) -> None:
    (single / SINGLE).write_bytes(data)
    with pytest.raises(CheckpointError, match=error) as caught:
        FlashVL.from_pretrained(single)
    assert str(caught.value).startswith(str(single / SINGLE))


def test_integer_weights_in_the_file(single: Path) -> None:
    state = load_file(single / SINGLE)
    state["adp.proj.weight"] = torch.zeros(32, 32, dtype=torch.int8)
    save_file(state, single / SINGLE)
    refused(single, r"adp\.proj\.weight has dtype I8; needs one of .*weights='int8'")


def test_weights_that_cannot_be_packed_are_named(single: Path) -> None:
    state = load_file(single / SINGLE)
    state["adp.proj.weight"][5, 1] = float("nan")
    save_file(state, single / SINGLE)
    plain = FlashVL.from_pretrained(single, layout="rows")
    assert plain.adapter.proj.weight.isnan().sum() == 1
    with pytest.raises(ValueError, match=r"adapter\.proj\.weight.* NaN in row 5"):
        FlashVL.from_pretrained(single, weights="int8")


def place(folder: Path, name: object) -> None:
    """Let the index name `name` for its first key."""
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"][next(iter(index["weight_map"]))] = name
    (folder / INDEX).write_text(json.dumps(index))


def test_index_names_a_missing_file(sharded: Path) -> None:
    place(sharded, "model-00009-of-00009.safetensors")
    refused(sharded, r"index\.json names 'model-00009-of-00009\.safetensors', which is not in")


@pytest.mark.parametrize(
    "form", ["../{0}", "{1}/{0}", "sub/{0}", "./{0}", "..", ".", "", "a\\b", "a\0b"]
)
def test_index_names_a_file_outside_its_folder(form: str, sharded: Path) -> None:
    outside = sharded.parent / "outside.safetensors"
    outside.write_bytes(next(sharded.glob("*.safetensors")).read_bytes())
    (sharded / "sub").mkdir()
    (sharded / "sub" / outside.name).write_bytes(outside.read_bytes())
    name = form.format(outside.name, sharded.parent)
    place(sharded, name)
    refused(sharded, r"names the file .*; needs a plain")


@pytest.mark.parametrize("value", [3, None, ["a"], {"a": 1}])
def test_index_names_no_file(value: object, sharded: Path) -> None:
    place(sharded, value)
    refused(sharded, r"index\.json")


def test_link_out_of_the_folder(sharded: Path) -> None:
    shard = next(sharded.glob("*.safetensors"))
    target = sharded.parent / "secret.safetensors"
    shard.rename(target)
    shard.symlink_to(target)
    refused(sharded, r"is a link to .*secret\.safetensors, outside of its folder")


def test_single_file_that_links_out(single: Path) -> None:
    target = single.parent / "secret.safetensors"
    (single / SINGLE).rename(target)
    (single / SINGLE).symlink_to(target)
    refused(single, "outside of its folder")
    target.unlink()
    refused(single, "which is not in")


def test_links_within_the_folder_and_a_hugging_face_cache_are_fine(single: Path) -> None:
    (single / SINGLE).rename(single / "real.safetensors")
    (single / SINGLE).symlink_to("real.safetensors")
    want = FlashVL.from_pretrained(single).decoder.table
    # The cache keeps files as blobs/<hash> and links to them from snapshots/<revision>/.
    cache = single.parent / "models--x"
    (cache / "blobs").mkdir(parents=True)
    snapshot = cache / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    os.rename(single / "real.safetensors", cache / "blobs" / "0123")
    (snapshot / SINGLE).symlink_to("../../blobs/0123")
    small().to_json(snapshot / "config.json")
    assert torch.equal(FlashVL.from_pretrained(snapshot).decoder.table, want)


def test_key_that_its_shard_lacks_and_key_in_two_shards(sharded: Path) -> None:
    first, second = sorted(sharded.glob("*.safetensors"))[:2]
    place(sharded, second.name)
    refused(sharded, rf"places .* in {second.name}, which lacks it")
    FlashVL.random(small(), dtype=torch.float32).save_pretrained(sharded, 40_000)
    state = load_file(second)
    key, tensor = next(iter(load_file(first).items()))
    save_file(state | {key: tensor}, second)
    refused(sharded, rf"{key} is in both {first.name} and {second.name}")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {}}', "\0"]
)
def test_index_that_is_none(text: str, sharded: Path) -> None:
    (sharded / INDEX).write_text(text)
    refused(sharded, r"is not an index|does not fit its config")


def test_missing_parts(single: Path) -> None:
    (single / SINGLE).unlink()
    refused(single, "has neither model.safetensors nor model.safetensors.index.json")
    (single / "config.json").unlink()
    refused(single, "has no config.json")
    refused(single / "nowhere", r'which is no folder; .* or "tiny"')
    refused(single.parent / "config.json", "which is no folder")


def test_broken_config(single: Path) -> None:
    (single / "config.json").write_text("")
    with pytest.raises(ConfigError, match=r"config\.json is not JSON"):
        FlashVL.from_pretrained(single)


@pytest.mark.parametrize(
    ("argument", "value", "error"),
    [
        ("dtype", torch.float64, r"dtype is torch\.float64; .* torch\.bfloat16"),
        ("dtype", torch.int8, r'dtype is torch\.int8; .*weights="int8"'),
        ("dtype", "bf16", r"dtype is 'bf16'"),
        ("device", "gpu", r"device is 'gpu'; needs \"cpu\", \"cuda\""),
        ("device", "meta", r"device is 'meta'; needs"),
        ("device", None, r"device is None; needs"),
        ("weights", "int2", r"weights is 'int2'; needs one of 'bf16', 'int8', 'int4'"),
    ],
)
def test_unsupported_arguments(argument: str, value: object, error: str, single: Path) -> None:
    with pytest.raises(ValueError, match=error):
        FlashVL.from_pretrained(single, **{argument: value})
    with pytest.raises(ValueError, match=error):
        FlashVL.random(small(), **{argument: value})


def test_cuda_without_cuda(single: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        ValueError, match=r"device is 'cuda', but .* no CUDA device.*device=\"cpu\""
    ):
        FlashVL.from_pretrained(single, device="cuda")
