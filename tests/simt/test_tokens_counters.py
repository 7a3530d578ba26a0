"""What the kernels around tokens move, at the widths of the models."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from flashvl_kernels import simt
from flashvl_kernels.compression import Compression
from flashvl_kernels.cuda import argmax_head, image_to_patches
from flashvl_kernels.cuda.device import L4
from flashvl_kernels.norm import Norm
from flashvl_kernels.packing import pack
from flashvl_kernels.spec import REGISTRY, Maker, capture
from flashvl_kernels.tiles import TileGrid
from tests.simt.test_ops import normal, wrong

pytestmark = pytest.mark.skipif(simt.unavailable() is not None, reason=str(simt.unavailable()))


def layer(channels: int) -> Norm:
    return Norm(normal(channels), normal(channels))


# Arguments of compress_tokens: as the models call it, of fewer tokens.
COMPRESS: dict[str, tuple[Any, ...]] = {
    "SigLIP2, shuffle 2, LN": (normal(1, 64, 1152), Compression(), layer(4608)),
    "AIMv2, shuffle 2, LN": (normal(1, 64, 1536), Compression(), layer(6144)),
    "CLS dropped": (normal(2, 37, 1024)[:, 1:], Compression(), layer(4096)),
    "shuffle 4, longer than registers": (normal(1, 16, 1152), Compression(factor=4)),
    "2x2 merge, norm first": (
        normal(1, 48, 1280), Compression(norm_first=True), layer(1280), None, (4, 12),
    ),
    "Unfold order, 9 padded to 10": (
        normal(1, 81, 1152), Compression(order="channel_row_col", pad=True),
    ),
    "stitched, pooled, LN": (
        normal(4, 64, 1536), Compression("adaptive", out=(7, 7)), layer(1536),
        TileGrid(2, 2, 8, 2, "mean"),
    ),
    "stitched by crop, bilinear": (
        normal(4, 49, 1152), Compression("bilinear", out=(7, 7)), None, TileGrid(2, 2, 7),
    ),
    "average": (normal(1, 64, 1152), Compression("average")),
}  # fmt: skip


@pytest.mark.parametrize("name", COMPRESS)
def test_compressed_tokens_are_read_once_in_whole_sectors(name: str) -> None:
    """At most 1.05 times the bytes that must move, all in 16-byte accesses, no bank met twice."""
    spec = REGISTRY["compress_tokens"]
    _, flat = capture(spec.function, *COMPRESS[name])
    result = simt.call(spec, flat, L4)
    assert not wrong(spec, flat, result), "\n".join(wrong(spec, flat, result))
    counters = result.counters
    assert len(result.launches) == 1
    assert result.bytes_from_memory <= 1.05 * spec.cost(*flat).bytes
    assert result.sector_efficiency >= 0.95
    assert counters["wide_accesses"] == counters["global_reads"] + counters["global_writes"]
    assert counters["bank_conflicts"] == 0
    # Each token is read once but where bins share it: no second pass of the norm.
    if flat[4] == "shuffle" and "longer" not in name:
        x = flat[0]
        norm = 0 if flat[1] is None else 2 * spec.fake(*flat).nbytes
        assert counters["global_read_bytes"] == x.numel() * x.element_size() + norm


IMAGES = {
    "photo, columns first": (300, 400, TileGrid(1, 1, 4), 16),
    "overlapping tiles": (320, 480, TileGrid(1, 2, 4, 1), 14),
    "rows of odd lengths": (301, 403, TileGrid(1, 1, 4), 16),
    "tall, rows first": (600, 270, TileGrid(1, 1, 8), 14),
    "width kept": (400, 128, TileGrid(1, 2, 4), 16),
}
"""Large enough that the weights of both axes are a few percent of the image."""
BUSY = replace(L4, multiprocessors=4)
"""With as many tokens a multiprocessor as full-size calls have, which so are blocks of several."""


def image_call(height: int, width: int, grid: TileGrid, patch: int) -> tuple[Any, ...]:
    image, half = Maker(torch.bfloat16).image(height, width), [0.5, 0.5, 0.5]
    return image, *grid.flat(), half, half, patch, torch.bfloat16


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_is_read_once_and_patches_are_written_once(name: str) -> None:
    """One launch; nothing between the passes is in memory. Whole sectors but at the ends of runs,
    which are all that a block needs of a row. Along rows lanes have banks of their own; down
    columns, a warp's outputs are rows that may meet."""
    spec, flat = REGISTRY["image_to_patches"], image_call(*IMAGES[name])
    result = simt.call(spec, flat, BUSY)
    assert torch.equal(result.outputs[0], spec.reference(*flat))
    assert not result.findings
    assert len(result.launches) == 1
    assert result.bytes_from_memory <= 1.05 * spec.cost(*flat).bytes
    assert result.sector_efficiency >= 0.95
    assert result.counters["global_write_bytes"] == result.outputs[0].nbytes
    most = 0.4 if name == "width kept" else 0.2  # it has only a pass down columns
    assert result.counters["bank_conflicts"] <= most * result.counters["shared_wavefronts"]


def test_every_grey_is_divided_by_255_as_the_reference_does() -> None:
    greys = torch.arange(256, dtype=torch.uint8).view(16, 16, 1).expand(16, 16, 3).contiguous()
    clip = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    flat = greys, *TileGrid(1, 1, 2).flat(), *clip, 8, torch.float32
    spec = REGISTRY["image_to_patches"]
    assert torch.equal(simt.call(spec, flat, L4).outputs[0], spec.reference(*flat))


def test_an_image_reduced_70_times_leaves_one_in_memory() -> None:
    """A token's rows do not fit beside each other; what is left is a few percent of the image."""
    spec, flat = REGISTRY["image_to_patches"], image_call(4480, 60, TileGrid(1, 1, 4), 16)
    prepared = image_to_patches.prepare(flat, L4)
    result = simt.run(prepared, simt.module("image_to_patches"), L4)
    assert torch.equal(result.outputs[0], spec.reference(*flat))
    assert not result.findings
    assert len(result.launches) == 2
    weights = sum(t.nbytes for name, t in prepared.tensors.items() if name.endswith("weight"))
    between = prepared.tensors["resized"].nbytes
    needed = spec.cost(*flat).bytes + weights + 2 * between
    assert result.bytes_from_memory <= 1.05 * needed
    assert result.counters["global_write_bytes"] <= result.outputs[0].nbytes + between


@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize("format", ["bf16", "int8", "int4"])
def test_the_vocabulary_is_read_once(format: str, rows: int) -> None:
    """At most 1.05 times the bytes that must move, for up to eight rows; on tensor cores."""
    spec = REGISTRY["argmax_head"]
    words, columns, k = 1024, 512, 2
    weight = pack(normal(words, columns), format)
    flat = (normal(rows, columns), normal(columns), 1e-6, *weight.flat(), k)
    result = simt.call(spec, flat, L4)
    assert not result.findings
    assert torch.equal(result.outputs[1][:, 0], spec.reference(*flat)[1][:, 0])
    counters = result.counters
    (launch,) = result.launches
    assert launch.grid[1] == words // argmax_head.WORDS
    assert result.bytes_from_memory <= 1.05 * spec.cost(*flat).bytes
    # Two products of 16 columns for each 32 bytes of 16 words; no bank met twice by x.
    assert counters["mma"] == words // 16 * columns // 16
    # But once a block, where the rows of x are put into the order the product reads.
    assert counters["bank_conflicts"] <= launch.grid[1] * rows * 24
    assert result.sector_efficiency >= 0.95


def test_nine_rows_read_the_vocabulary_twice() -> None:
    flat = (normal(9, 64), normal(64), 1e-6, normal(256, 64), None, "bf16", 64, 1)
    prepared = argmax_head.prepare(flat, L4)
    assert prepared.launches[0].grid == (2, 2, 1)


def test_the_head_gives_the_same_bits_and_leaves_its_counters_at_zero() -> None:
    """A launch can be replayed with the memory of the one before, as a CUDA graph does."""
    flat = (normal(3, 64), normal(64), 1e-6, normal(700, 64), None, "bf16", 64, 5)
    prepared = argmax_head.prepare(flat, L4)
    assert prepared.launches[0].grid[1] > 2
    built = simt.module("argmax_head")
    first = [out.clone() for out in simt.run(prepared, built).outputs]
    again = simt.run(prepared, built)
    assert all(torch.equal(a, b) for a, b in zip(first, again.outputs, strict=True))
    assert int(prepared.tensors["counters"].abs().sum()) == 0
