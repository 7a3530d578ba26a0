"""What the matrix products move and multiply, against what their tiling predicts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from flashvl_kernels import simt
from flashvl_kernels.cuda import product_plan
from flashvl_kernels.cuda.device import H100, L4
from flashvl_kernels.cuda.launch import ceil_div
from flashvl_kernels.packing import FlatWeight, flat_weight, pack
from flashvl_kernels.spec import REGISTRY
from tests.simt.test_ops import normal, wrong

pytestmark = pytest.mark.skipif(simt.unavailable() is not None, reason=str(simt.unavailable()))

FORMATS = ("bf16", "int8", "int4")


def weight(rows: int, columns: int, weight_format: str, dtype: torch.dtype) -> FlatWeight:
    w = (normal(rows, columns) * columns**-0.5).to(dtype)
    return flat_weight("linear", "w", w if weight_format == "bf16" else pack(w, weight_format))


def linear(
    rows: int,
    units: int,
    columns: int,
    weight_format: str = "bf16",
    dtype: torch.dtype = torch.bfloat16,
    *,
    norm: bool = False,
) -> tuple[Any, ...]:
    """Schema arguments of a product with a bias and a residual."""
    given: list[Tensor] = [normal(rows, columns), normal(units), normal(rows, units)]
    x, bias, residual = (tensor.to(dtype) for tensor in given)
    norm_weight = normal(columns).to(dtype) if norm else None
    w = weight(units, columns, weight_format, dtype)
    return (x, *w, bias, "silu", residual, norm_weight, None, 1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("weight_format", FORMATS)
def test_tiles_meet_no_bank_twice(weight_format: str, dtype: torch.dtype) -> None:
    """The ring, the fragments, and the sums on their way out; tiles with a rest, several steps."""
    flat = linear(75, 140, 200, weight_format, dtype)
    result = simt.call(REGISTRY["linear"], flat)
    assert not wrong(REGISTRY["linear"], flat, result)
    assert result.counters["bank_conflicts"] == 0


@pytest.mark.parametrize("weight_format", FORMATS)
@pytest.mark.parametrize("rows", [64, 150])
def test_tiles_move_what_their_tiling_predicts(rows: int, weight_format: str) -> None:
    """x once a column of tiles, w and its scales once a row of tiles; one barrier a step."""
    units, columns = 256, 256
    flat = linear(rows, units, columns, weight_format)
    spec, result = REGISTRY["linear"], simt.call(REGISTRY["linear"], flat)
    assert not wrong(spec, flat, result)
    found = product_plan.plan(rows, units, columns, 2, weight_format, False, H100)
    assert (found.kernel, found.rows, found.splits) == ("mma", 64, 1)
    down, across, steps = ceil_div(rows, found.rows), units // found.columns, columns // 32
    w_bytes = flat[1].nbytes
    scales = {"bf16": 0, "int8": units * 4, "int4": units * 4 * steps}[weight_format]
    counters = result.counters
    expected = across * rows * columns * 2 + down * (w_bytes + scales)
    expected += rows * units * 2  # the residual
    # The bias, once a row.
    assert counters["global_read_bytes"] == expected + rows * units * 2
    assert counters["global_write_bytes"] == rows * units * 2
    assert counters["mma"] == down * across * steps * 128
    assert result.bytes_from_memory <= 1.05 * spec.cost(*flat).bytes
    if weight_format == "bf16":
        assert result.sector_efficiency >= 0.95


@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize("weight_format", FORMATS)
def test_few_rows_read_the_weights_once(rows: int, weight_format: str) -> None:
    """A decoder's width: at most 1.05 times the cost model's bytes, in whole sectors."""
    flat = linear(rows, 256, 1536, weight_format, norm=True)
    spec, result = REGISTRY["linear"], simt.call(REGISTRY["linear"], flat, L4)
    assert not wrong(spec, flat, result)
    assert [launch.kernel.expression.split("<")[0] for launch in result.launches] == [
        "product_few_kernel"
    ]
    assert result.bytes_from_memory <= 1.05 * spec.cost(*flat).bytes
    assert result.sector_efficiency >= 0.95


@pytest.mark.parametrize("rows", [3, 40])
def test_a_split_sum_is_the_same_every_time(rows: int) -> None:
    """And leaves its counters at zero for the next launch."""
    flat = linear(rows, 40, 2048)
    spec = REGISTRY["linear"]
    first, second = (simt.call(spec, flat) for _ in range(2))
    assert first.launches[-1].grid[1] > 1
    assert not wrong(spec, flat, first)
    assert torch.equal(first.outputs[0], second.outputs[0])


@pytest.mark.parametrize("weight_format", FORMATS)
def test_a_decoder_mlp_of_one_row_moves_its_weights(weight_format: str) -> None:
    """Two launches; between them only the gated row."""
    width, channels = 512, 1024
    gate_up = weight(2 * width, channels, weight_format, torch.bfloat16)
    down = weight(channels, width, weight_format, torch.bfloat16)
    flat = (normal(1, channels), normal(channels), 1e-6, *gate_up, *down)
    spec, result = REGISTRY["swiglu_mlp"], simt.call(REGISTRY["swiglu_mlp"], flat, L4)
    assert not wrong(spec, flat, result)
    assert len(result.launches) == 2
    assert result.bytes_from_memory <= 1.05 * spec.cost(*flat).bytes
    assert result.sector_efficiency >= 0.95
