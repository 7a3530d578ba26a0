"""Calls that nothing stops on a GPU, where no op looks at values: ids, positions and slots out of
range are masked, never used as an address; and a cache whose sequences lie past 2^31."""

from __future__ import annotations

import pytest
import torch
from semantics import executed
from test_kernels_from_ir import flat_call

from flashvl_kernels import numerics, triton
from flashvl_kernels.ops import merge_image_tokens, rope_qkv
from flashvl_kernels.spec import Maker


@pytest.mark.parametrize(
    "name", ["too few image rows", "too many image rows", "another negative id"]
)
def test_counts_of_image_rows(name: str) -> None:
    spec = merge_image_tokens.SPEC
    (sample,) = (sample for sample in spec.samples if sample.name == name)
    flat = flat_call(spec, sample, torch.bfloat16)
    with executed() as launched:
        got = triton.module(spec.name).run(*flat)
    assert launched
    assert torch.equal(got, spec.reference(*flat))


def cached_call() -> list[object]:
    spec = rope_qkv.SPEC_CACHED
    (sample,) = (sample for sample in spec.samples if sample.name == "slots in any order")
    return list(numerics.duplicate(flat_call(spec, sample, torch.bfloat16)))


@pytest.mark.parametrize("slot", [-1, -2, 16, 2**40])
def test_a_slot_out_of_range_is_not_written(slot: int) -> None:
    flat, expected = cached_call(), cached_call()
    flat[8] = torch.tensor([9, slot, 15, 7])
    expected[8] = torch.tensor([9, -1, 15, 7])
    q = rope_qkv.reference_cached(*expected)
    with executed():
        got = triton.module("rope_qkv_cached").run(*flat)
    for mine, wanted in zip((got, *flat[6:8]), (q, *expected[6:8]), strict=True):
        torch.testing.assert_close(mine, wanted)


@pytest.mark.parametrize("position", [-1, 40, 2**40])
def test_a_position_out_of_range_reads_nothing(position: int) -> None:
    """The row turns to zeros; the others are what they are without it."""
    flat, expected = cached_call(), cached_call()
    flat[3], expected[3] = torch.tensor([0, position, 2, 3]), torch.tensor([0, 1, 2, 3])
    q = rope_qkv.reference_cached(*expected)
    with executed():
        got = triton.module("rope_qkv_cached").run(*flat)
    assert not got[1].any()
    torch.testing.assert_close(got[[0, 2, 3]], q[[0, 2, 3]])


def test_a_cache_past_2_to_the_31() -> None:
    m = Maker(torch.bfloat16, seed=1)
    far = [m.far(3, 1, 8, 14, stride=2**30) for _ in range(2)]
    near = [cache.clone(memory_format=torch.contiguous_format) for cache in far]
    flat = cached_call()
    flat[8] = torch.tensor([9, 0, 23, 16])
    rope_qkv.reference_cached(*flat[:6], *near, flat[8])
    with executed():
        triton.module("rope_qkv_cached").run(*flat[:6], *far, flat[8])
    for mine, wanted in zip(far, near, strict=True):
        torch.testing.assert_close(mine.contiguous(), wanted)
