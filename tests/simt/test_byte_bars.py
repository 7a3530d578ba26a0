"""The bar of every op that memory bounds, in every dtype: at most 1.05 times the bytes that must
move, and at least 95 % of each sector asked for.

Shapes are those of the models, of fewer rows: a megabyte or so, seconds under simt. An op that is
in neither table fails.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from flashvl_kernels import simt
from flashvl_kernels.compression import Compression
from flashvl_kernels.cuda.device import L4
from flashvl_kernels.norm import Norm
from flashvl_kernels.packing import flat_weight, pack
from flashvl_kernels.spec import REGISTRY, Maker, capture
from flashvl_kernels.tiles import TileGrid
from tests.simt.test_ops import SPECS, normal, wrong

pytestmark = pytest.mark.skipif(simt.unavailable() is not None, reason=str(simt.unavailable()))

Flat = tuple[Any, ...]

NOT_BY_MEMORY = {
    "tile_attention": "FLOPs; its traffic is in test_attention_counters.py",
    "stitched_tile_attention": "FLOPs; its traffic is in test_attention_counters.py",
    "causal_attention": "FLOPs; its traffic is in test_attention_counters.py",
    "gelu_mlp": "FLOPs: a tile has 1024 rows; its products are in test_product_counters.py",
}
"""Ops whose full-size calls are bound otherwise, and what holds their traffic."""


def weight(rows: int, columns: int, weight_format: str, dtype: torch.dtype) -> Flat:
    w = (normal(rows, columns) * columns**-0.5).to(dtype)
    return flat_weight("linear", "w", w if weight_format == "bf16" else pack(w, weight_format))


def compress(dtype: torch.dtype) -> Flat:
    x, norm = normal(1, 256, 1152).to(dtype), [normal(4608).to(dtype) for _ in range(2)]
    return capture(REGISTRY["compress_tokens"].function, x, Compression(), Norm(*norm))[1]


def image(dtype: torch.dtype) -> Flat:
    half = [0.5, 0.5, 0.5]
    pixels = Maker(dtype).image(320, 480)
    return pixels, *TileGrid(1, 2, 4, 1).flat(), half, half, 14, dtype


def merge(dtype: torch.dtype) -> Flat:
    ids = torch.arange(120)
    ids[20:84] = -201
    ids[20] = -200
    return normal(120, 1536).to(dtype), ids, normal(64, 1536).to(dtype)


def rope(dtype: torch.dtype) -> Flat:
    cos, sin = (normal(70, 64).float() for _ in range(2))
    return normal(64, 16 * 128).to(dtype), cos, sin, torch.arange(64) + 6, 12, 2


def cached(dtype: torch.dtype) -> Flat:
    k, v = (normal(2, 2, 64, 128).to(dtype) for _ in range(2))
    return *rope(dtype), k, v, torch.arange(64) + 30


def decode(dtype: torch.dtype) -> Flat:
    """As many sequences as fill the device: what parts of a long one leave is counted in
    test_attention_counters.py."""
    k, v = (normal(60, 2, 32, 128).to(dtype) for _ in range(2))
    return normal(60, 12, 128).to(dtype), k, v, torch.full((60,), 32), None


def head(weight_format: str) -> Callable[[torch.dtype], Flat]:
    def call(dtype: torch.dtype) -> Flat:
        w = weight(1024, 1536, weight_format, dtype)
        return normal(1, 1536).to(dtype), normal(1536).to(dtype), 1e-6, *w, 1

    return call


def product(weight_format: str, rows: int = 1) -> Callable[[torch.dtype], Flat]:
    """The decoder's query, key and value product, of an eighth of its units. In fp32 without its
    norm, whose rows are a launch of their own and weigh too much beside so few units."""

    def call(dtype: torch.dtype) -> Flat:
        w, bias = weight(256, 1536, weight_format, dtype), normal(256).to(dtype)
        norm = None if dtype == torch.float32 else normal(1536).to(dtype)
        return normal(rows, 1536).to(dtype), *w, bias, None, None, norm, None, 1e-6

    return call


def mlp(weight_format: str) -> Callable[[torch.dtype], Flat]:
    def call(dtype: torch.dtype) -> Flat:
        w_gate_up = weight(1024, 1536, weight_format, dtype)
        w_down = weight(1536, 512, weight_format, dtype)
        return normal(1, 1536).to(dtype), normal(1536).to(dtype), 1e-6, *w_gate_up, *w_down

    return call


def made(*parts: Any) -> Callable[[torch.dtype], Flat]:
    """Schema arguments whose tensors take the dtype."""
    return lambda dtype: tuple(p.to(dtype) if isinstance(p, Tensor) else p for p in parts)


CALLS: dict[str, tuple[str, Callable[[torch.dtype], Flat]]] = {
    "rms_norm": ("rms_norm", made(normal(300, 1536), normal(1536), 1e-6, normal(300, 1536))),
    "layer_norm": (
        "layer_norm",
        made(normal(260, 1152), normal(1152), normal(1152), 1e-6, normal(260, 1152)),
    ),
    "swiglu": ("swiglu", made(normal(24, 2 * 8960))),
    "stitch_tiles": ("stitch_tiles", made(normal(4, 64, 1536), 2, 2, 8, 2, "linear", 0)),
    "compress_tokens": ("compress_tokens", compress),
    "image_to_patches": ("image_to_patches", image),
    "merge_image_tokens": ("merge_image_tokens", merge),
    "rope_qkv": ("rope_qkv", rope),
    "rope_qkv_cached": ("rope_qkv_cached", cached),
    "decode_attention": ("decode_attention", decode),
    **{
        name: call
        for weight_format in ("bf16", "int8", "int4")
        for name, call in {
            f"argmax_head, {weight_format}": ("argmax_head", head(weight_format)),
            f"linear, one row, {weight_format}": ("linear", product(weight_format)),
            f"linear, eight rows, {weight_format}": ("linear", product(weight_format, 8)),
            f"swiglu_mlp, one row, {weight_format}": ("swiglu_mlp", mlp(weight_format)),
        }.items()
    },
}

NOT_HELD = [
    (name, "fp32")
    for name, (op, _) in CALLS.items()
    if op in ("linear", "swiglu_mlp") and "bf16" not in name
]
"""Integers beside fp32 activations, which no model has: a step of product_fma.cuh is 16 bytes of a
row of int8, 8 of int4, parts of a sector."""


def test_every_op_is_in_one_of_the_tables() -> None:
    here = {op for op, _ in CALLS.values()}
    assert here | set(NOT_BY_MEMORY) == {spec.name for spec in SPECS}
    assert not here & set(NOT_BY_MEMORY)


@pytest.mark.parametrize(
    ("name", "dtype"), [(n, d) for n in CALLS for d in simt.DTYPES if (n, d) not in NOT_HELD]
)
def test_bytes_and_sectors(name: str, dtype: str) -> None:
    op, make = CALLS[name]
    spec, flat = REGISTRY[op], make(simt.DTYPES[dtype])
    result = simt.call(spec, flat, L4)
    assert not wrong(spec, flat, result), "\n".join(wrong(spec, flat, result))
    assert result.bytes_from_memory <= 1.05 * spec.cost(*flat).bytes
    assert result.sector_efficiency >= 0.95
