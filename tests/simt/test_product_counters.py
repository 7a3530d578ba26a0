"""What the matrix products move and multiply, against what their tiling predicts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from flashvl_kernels import simt
from flashvl_kernels.cuda import product_plan
from flashvl_kernels.cuda.device import H100, L4, Device
from flashvl_kernels.cuda.launch import ceil_div
from flashvl_kernels.packing import FlatWeight, flat_weight, pack
from flashvl_kernels.spec import REGISTRY
from tests.simt.test_ops import normal, wrong

pytestmark = pytest.mark.skipif(simt.unavailable() is not None, reason=str(simt.unavailable()))

FORMATS = ("bf16", "int8", "int4")
ONE = replace(H100, name="one multiprocessor", multiprocessors=1)
"""Where a few tiles are many: tiles of 128 rows, and sums that are not split."""


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


def scale_bytes(flat: tuple[Any, ...]) -> int:
    return 0 if flat[2] is None else int(flat[2].nbytes)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("weight_format", FORMATS)
@pytest.mark.parametrize("device", [H100, ONE], ids=lambda d: d.name)
def test_tiles_meet_no_bank_twice(device: Device, weight_format: str, dtype: torch.dtype) -> None:
    """The ring, the fragments, and the sums on their way out; tiles with a rest, several steps."""
    flat = linear(75, 140, 200, weight_format, dtype)
    result = simt.call(REGISTRY["linear"], flat, device)
    assert not wrong(REGISTRY["linear"], flat, result)
    assert result.counters["bank_conflicts"] == 0


@pytest.mark.parametrize("weight_format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
def test_few_rows_meet_no_bank_twice(dtype: torch.dtype, weight_format: str) -> None:
    """In the loop: three blocks of 16 units meet some when their sums leave, and when the scales of
    int4 come, once for each of their rows."""
    most = {"bf16": 6, "int8": 6, "int4": 6 + 3 * 16}[weight_format]
    for columns in (900, 1800):
        flat = linear(6, 40, columns, weight_format, dtype, norm=True)
        result = simt.call(REGISTRY["linear"], flat, ONE)
        assert not wrong(REGISTRY["linear"], flat, result)
        assert result.counters["bank_conflicts"] <= (most if dtype == torch.bfloat16 else 0)


@pytest.mark.parametrize("weight_format", FORMATS)
@pytest.mark.parametrize(
    ("device", "rows"), [(H100, 64), (H100, 150), (ONE, 150)], ids=["64", "150", "tiles of 128"]
)
def test_tiles_move_what_their_tiling_predicts(
    device: Device, rows: int, weight_format: str
) -> None:
    """x once a column of tiles, w and its scales once a row of tiles; one barrier a step."""
    units, columns = 256, 256
    flat = linear(rows, units, columns, weight_format)
    spec, result = REGISTRY["linear"], simt.call(REGISTRY["linear"], flat, device)
    assert not wrong(spec, flat, result)
    found = product_plan.plan(rows, units, columns, 2, weight_format, False, device)
    assert (found.kernel, found.splits) == ("mma", 1)
    assert found.rows == (64 if device is H100 else 128)
    down, across, steps = ceil_div(rows, found.rows), units // found.columns, columns // 32
    counters = result.counters
    # Those of int8 multiply the sums: every warp of 64 rows reads them.
    times = found.rows // 64 if weight_format == "int8" else 1
    expected = across * rows * columns * 2 + down * (flat[1].nbytes + times * scale_bytes(flat))
    expected += rows * units * 2  # the residual
    # The bias, once a row.
    assert counters["global_read_bytes"] == expected + rows * units * 2
    assert counters["global_write_bytes"] == rows * units * 2
    assert counters["mma"] == down * across * steps * 2 * found.rows
    assert result.bytes_from_memory <= 1.05 * spec.cost(*flat).bytes
    assert result.sector_efficiency >= 0.95


@pytest.mark.parametrize("weight_format", FORMATS)
@pytest.mark.parametrize("rows", [1, 8, 70])
def test_tiles_of_fp32_move_what_their_tiling_predicts(rows: int, weight_format: str) -> None:
    """Up to 8 rows are a tile: the memory sees w once, as in 16 bits."""
    units, columns = 128, 256
    flat = linear(rows, units, columns, weight_format, torch.float32)
    spec, result = REGISTRY["linear"], simt.call(REGISTRY["linear"], flat, ONE)
    assert not wrong(spec, flat, result)
    found = product_plan.plan(rows, units, columns, 4, weight_format, False, ONE)
    assert (found.kernel, found.rows, found.splits) == ("fma", 64 if rows > 8 else 8, 1)
    down, across = ceil_div(rows, found.rows), units // found.columns
    counters = result.counters
    expected = across * rows * columns * 4 + down * flat[1].nbytes + rows * units * 4
    # The bias, once for two rows, which are a warp's.
    expected += (
        sum(ceil_div(min(found.rows, rows - first), 2) for first in range(0, rows, found.rows))
        * units
        * 4
    )
    scales = counters["global_read_bytes"] - expected
    if weight_format == "bf16":
        assert scales == 0
    else:
        assert scales >= down * scale_bytes(flat)
    assert counters["global_write_bytes"] == rows * units * 4
    assert result.bytes_from_memory <= 1.05 * spec.cost(*flat).bytes


@pytest.mark.parametrize("columns", [1300, 2200])
def test_scales_of_many_groups_come_eight_at_a_time(columns: int) -> None:
    """Eleven groups are two copies, eighteen are three, into two places. Three tiles: no split."""
    flat = linear(10, 264, columns, "int4")
    spec, result = REGISTRY["linear"], simt.call(REGISTRY["linear"], flat, ONE)
    assert not wrong(spec, flat, result)
    assert result.launches[0].grid == (3, 1, 1)
    assert result.counters["bank_conflicts"] == 0
    assert result.bytes_from_memory <= 1.05 * spec.cost(*flat).bytes


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
