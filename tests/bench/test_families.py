"""The op benchmark has each op at the shapes of four models, or says why it has no place there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from flashvl_bench import ceilings, cli
from flashvl_bench.cases import families, select
from flashvl_kernels import numerics
from flashvl_kernels.shapes import meta_call
from flashvl_kernels.spec import REGISTRY, OpSpec, Sample, capture
from tests.bench.test_ops_bench import TOP

MODELS = ("flash-vl", "internvl", "qwen2-vl", "llava-onevision")
OTHERS = {"stream", "lfm2-vl", "deepseek-vl2"}

# What a model has not, from its published configuration and code.
NO_STITCHING = "no tiles that overlap, and no canvas"
NO_PLACE = {
    ("gelu_mlp", "qwen2-vl"): "its encoder has x * sigmoid(1.702 x), neither form of GELU",
    ("image_to_patches", "qwen2-vl"): "whole images of any size in the order of its 2x2 merges",
    ("image_to_patches", "llava-onevision"): "tiles of 384 px, of which patches of 14 leave 6 over",
    ("stitch_tiles", "internvl"): NO_STITCHING,
    ("stitch_tiles", "qwen2-vl"): NO_STITCHING,
    ("stitched_tile_attention", "internvl"): NO_STITCHING,
    ("stitched_tile_attention", "qwen2-vl"): NO_STITCHING,
    ("stitched_tile_attention", "llava-onevision"): "tiles are put together, but do not overlap",
}

MOST_BYTES = 64 << 20  # of arguments that are built and run here; a vocabulary takes seconds


def bench_samples() -> list[Any]:
    return [
        pytest.param(spec, sample, id=f"{spec.name}-{sample.name.replace(' ', '_')}")
        for spec in REGISTRY.values()
        for sample in spec.samples
        if sample.kind == "bench"
    ]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("op", sorted(REGISTRY))
def test_every_op_has_the_shapes_of_every_model(op: str, model: str) -> None:
    found = [sample.name for sample in REGISTRY[op].samples if model in sample.families]
    assert bool(found) != ((op, model) in NO_PLACE), found


@pytest.mark.parametrize(("spec", "sample"), bench_samples())
def test_a_bench_sample_names_its_model_and_runs(spec: OpSpec, sample: Sample) -> None:
    assert sample.families and set(sample.families) <= {*MODELS, *OTHERS}
    shapes = meta_call(spec, sample, torch.bfloat16)
    size = sum(arg.nbytes for arg in shapes if isinstance(arg, Tensor))
    if size > MOST_BYTES:
        pytest.skip(f"{size >> 20} MiB of arguments")
    built = sample.build(torch.bfloat16)
    found, flat = capture(spec.function, *built.args, **built.kwargs)
    assert found is spec
    assert [_shape(arg) for arg in flat] == [_shape(arg) for arg in shapes]
    outputs = numerics.results(spec, spec.op, flat)
    assert all(bool(out.isfinite().all()) for out in outputs if out.is_floating_point())
    assert spec.cost(*flat).bytes > 0


def _shape(arg: object) -> object:
    return arg.shape if isinstance(arg, Tensor) else arg


def test_only_bench_samples_have_a_family() -> None:
    others = [
        (spec.name, sample.name)
        for spec in REGISTRY.values()
        for sample in spec.samples
        if sample.family and sample.kind != "bench"
    ]
    assert not others


def flat_of(op: str, name: str) -> tuple[Any, ...]:
    spec = REGISTRY[op]
    built = next(s for s in spec.samples if s.name == name).build(torch.float32)
    return capture(spec.function, *built.args, **built.kwargs)[1]


def test_m_rope_is_one_rotation_where_the_three_places_agree() -> None:
    """Text is turned by its number as without images; behind one of 16x16 it goes on at 16 more."""
    mine = flat_of("rope_qkv", "Qwen2-VL prefill of 300, M-RoPE")[1]
    plain = flat_of("rope_qkv", "Qwen2 prefill of 300")[1]
    torch.testing.assert_close(mine[:15], plain[:15])
    torch.testing.assert_close(mine[14 + 256], plain[14 + 16])
    row, column, image = 3, 5, 14
    found = mine[image + 16 * row + column]
    expected = (plain[image, :16], plain[image + row, 16:40], plain[image + column, 40:])
    torch.testing.assert_close(found, torch.cat(expected))


def test_families_are_selected() -> None:
    assert set(families()) == {*MODELS, *OTHERS}
    cases = list(select(("rms_norm", "linear"), ("bf16",), of_families=("internvl",)))
    assert cases and all("internvl" in case.sample.families for case in cases)
    assert {case.spec.name for case in cases} == {"rms_norm", "linear"}
    both = list(select(("linear",), ("bf16",), of_families=("internvl", "qwen2-vl")))
    assert len(both) > len([case for case in cases if case.spec.name == "linear"])
    assert not list(select(("stitch_tiles",), of_families=("qwen2-vl",)))


def test_the_command_takes_a_family(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ceilings, "measure", lambda *_: TOP)
    arguments = ["ops", "--op", "rms_norm", "--dtype", "fp32", "--backend", "torch", "--quick"]
    assert cli.main([*arguments, "--family", "llava-onevision"]) == 0
    out = capsys.readouterr().out
    assert "Qwen2-0.5B prefill of 800" in out and "decoder prefill" not in out
    with pytest.raises(SystemExit):
        cli.main([*arguments, "--family", "llava"])
    assert "--family is 'llava'; needs deepseek-vl2, flash-vl" in capsys.readouterr().err
