"""Launch plans of the matrix products, as pure functions of shapes and devices."""

from __future__ import annotations

import json

import pytest
import torch

from flashvl_kernels.cuda import gelu_mlp, linear, product_plan, resources, swiglu_mlp
from flashvl_kernels.cuda.device import A100, B200, DEVICES, H100, L4, RTX_4090, Device
from flashvl_kernels.cuda.launch import ceil_div
from flashvl_kernels.cuda.occupancy import occupancy
from flashvl_kernels.cuda.product_plan import plan
from flashvl_kernels.packing import LAYOUTS, pack

BUDGET = json.loads(resources.BUDGET.read_text())
ALL = pytest.mark.parametrize("device", DEVICES, ids=lambda d: d.name)
SHAPES = [
    (1, 2048, 1536, False),
    (1, 8960, 1536, True),
    (1, 1536, 8960, False),
    (8, 1536, 8960, False),
    (9, 1536, 8960, False),
    (300, 8960, 1536, True),
    (1024, 4304, 1152, False),
    (1024, 1152, 4304, False),
    (3, 13, 77, False),
    (5, 1, 1, True),
    (1, 7, 0, False),
]


@ALL
@pytest.mark.parametrize("weight_format", ["bf16", "int8", "int4"])
@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("shape", SHAPES)
def test_parts_hold_every_column_once_and_fit_the_device(
    shape: tuple[int, int, int, bool], itemsize: int, weight_format: str, device: Device
) -> None:
    rows, units, columns, gated = shape
    found = plan(rows, units, columns, itemsize, weight_format, gated, device)
    step = {"few": 32, "mma": 32, "fma": 16}[found.kernel]
    assert found.part % step == 0
    assert (found.splits - 1) * found.part < max(columns, 1) <= found.splits * found.part
    if weight_format == "int4":
        assert found.part % 128 == 0
    width = product_plan.width_of(units, gated)
    assert found.tiles == ceil_div(rows, found.rows) * ceil_div(width, found.columns)
    assert found.shared_bytes <= device.shared_bytes_per_block
    assert found.splits <= product_plan.MAX_SPLITS
    assert (found.kernel == "few") == (itemsize == 2 and rows <= 8)
    if itemsize == 4:
        assert found.rows == (8 if rows <= 8 else 64)


@pytest.mark.parametrize(
    ("device", "rows"), [(H100, 128), (A100, 128), (L4, 128), (RTX_4090, 128), (B200, 128)]
)
def test_the_wide_product_of_a_vit_has_tiles_of_128_rows(device: Device, rows: int) -> None:
    """1024 rows to 4304: 8 x 34 tiles of 128 x 128 fill each of the five."""
    found = plan(1024, 4304, 1152, 2, "bf16", False, device)
    assert (found.kernel, found.rows, found.columns, found.tiles) == ("mma", rows, 128, 272)
    assert (found.splits, found.threads, found.shared_bytes) == (1, 256, 128 * 136 * 4)


@pytest.mark.parametrize(
    ("device", "rows", "splits"),
    [(H100, 64, 1), (A100, 64, 1), (L4, 128, 1), (RTX_4090, 64, 1), (B200, 64, 2)],
)
def test_its_narrow_product_has_tiles_that_fill_the_device(
    device: Device, rows: int, splits: int
) -> None:
    """1024 rows to 1152: 8 x 9 tiles of 128 rows fill an L4; the others get 16 x 9."""
    found = plan(1024, 1152, 4304, 2, "bf16", False, device)
    assert (found.rows, found.splits) == (rows, splits)


@pytest.mark.parametrize(
    ("device", "splits"), [(H100, 4), (A100, 3), (L4, 1), (RTX_4090, 4), (B200, 4)]
)
def test_a_prefill_of_300_rows_splits_its_sums(device: Device, splits: int) -> None:
    """300 rows to 1536: 5 x 12 tiles of 64 rows, two blocks a multiprocessor."""
    found = plan(300, 1536, 1536, 2, "bf16", False, device)
    assert (found.rows, found.tiles, found.splits) == (64, 60, splits)


@pytest.mark.parametrize(
    ("device", "splits"), [(H100, 2), (A100, 2), (L4, 1), (RTX_4090, 2), (B200, 3)]
)
def test_one_row_keeps_two_blocks_a_multiprocessor(device: Device, splits: int) -> None:
    """The down product of a decoder, 8960 to 1536: 96 tiles of 16 units."""
    found = plan(1, 1536, 8960, 2, "bf16", False, device)
    assert (found.kernel, found.tiles, found.splits) == ("few", 96, splits)


@pytest.mark.parametrize("weight_format", ["bf16", "int8", "int4"])
def test_two_blocks_a_multiprocessor_is_what_registers_and_shared_memory_admit(
    weight_format: str,
) -> None:
    """What splits are chosen for, against the compiled kernels: the decoder's two products and, in
    fp32, its prefill, whose tile of int4 takes the registers of a second block."""
    for device in DEVICES:
        kernels = BUDGET["linear"][f"sm_{device.capability}"]
        for rows, itemsize, least in [(1, 2, 2), (8, 2, 2), (1, 4, 2), (300, 4, 2)]:
            for units, columns, gated in [(8960, 1536, True), (1536, 8960, False)]:
                found = plan(rows, units, columns, itemsize, weight_format, gated, device)
                dtype = torch.float32 if itemsize == 4 else torch.bfloat16
                kernel = product_plan._instance(found.kernel, dtype, weight_format, found.size)
                used = kernels[kernel.expression]
                shared = used["shared"] + found.shared_bytes
                blocks = occupancy(found.threads, used["registers"], shared, device).blocks
                one = weight_format == "int4" and found.kernel == "fma" and found.rows > 8
                assert blocks >= (1 if one else least), (device.name, kernel, blocks)


@pytest.mark.parametrize(
    ("weight_format", "shared"),
    [
        ("bf16", 4 * (64 + 128) * 64),
        ("int8", 64 * 136 * 4),
        ("int4", 4 * 64 * 64 + 3 * 128 * 32 + 16 * 132 * 4),
    ],
)
def test_a_tile_of_64_rows_keeps_its_ring_in_shared_memory(weight_format: str, shared: int) -> None:
    """That of int8 is smaller than the sums which take its place."""
    assert plan(300, 1536, 1536, 2, weight_format, False, H100).shared_bytes == shared


@ALL
def test_one_row_of_many_units_is_not_split(device: Device) -> None:
    found = plan(1, 8960, 1536, 2, "bf16", True, device)
    assert (found.tiles, found.splits) == (1120, 1)


def weight(rows: int, columns: int) -> torch.Tensor:
    return torch.zeros(rows, columns, dtype=torch.bfloat16)


def test_a_decoder_mlp_of_one_row_is_two_launches() -> None:
    x, norm = weight(1, 64), torch.zeros(64, dtype=torch.bfloat16)
    flat = (x, norm, 1e-6, weight(96, 64), None, "bf16", 64, weight(64, 48), None, "bf16", 48)
    found = swiglu_mlp.prepare(flat, H100)
    assert [launch.kernel.expression for launch in found.launches] == [
        "product_few_kernel<BF16, Plain16>"
    ] * 2
    many = (weight(20, 64), *flat[1:])
    assert len(swiglu_mlp.prepare(many, H100).launches) == 3


def test_counters_start_at_zero() -> None:
    flat = (weight(3, 4096), weight(8, 4096), None, "bf16", 4096, None, None, None, None, None, 0.0)
    found = linear.prepare(flat, H100)
    assert found.launches[0].grid[1] > 1
    assert int(found.tensors["counters y"].abs().sum()) == 0


def test_aligned_operands_are_not_copied_and_others_are() -> None:
    def prepared(x: torch.Tensor, w: torch.Tensor) -> tuple[bool, bool]:
        flat = (x, w, None, "bf16", w.shape[1], None, None, None, None, None, 0.0)
        tensors = linear.prepare(flat, H100).tensors
        return tensors["x"] is x, tensors["w"] is w

    assert prepared(weight(3, 64), weight(16, 64)) == (True, True)
    assert prepared(weight(3, 72)[:, :64], weight(16, 80)[:, :64]) == (True, True)
    assert prepared(weight(3, 67)[:, :64], weight(16, 67)[:, :64]) == (False, False)
    assert prepared(weight(3, 77), weight(16, 77)) == (False, False)


def test_panels_are_refused_with_a_reason() -> None:
    rows, panels = (pack(torch.ones(32, 32), "int8", layout).flat() for layout in LAYOUTS)
    x, norm, bias = torch.zeros(2, 32), torch.zeros(32), torch.zeros(32)

    def said(argument: str) -> str:
        return f"{argument} is in panels, the CPU's layout; pack it in the layout 'rows'"

    assert linear.why_not(x, *rows) is None and linear.why_not(x, *panels) == said("w")
    assert swiglu_mlp.why_not(x, norm, 1e-6, *panels, *rows) == said("w_gate_up")
    assert swiglu_mlp.why_not(x, norm, 1e-6, *rows, *panels) == said("w_down")
    assert gelu_mlp.why_not(x, norm, None, 1e-6, *panels, bias, *rows, bias) == said("w1")
    assert gelu_mlp.why_not(x, norm, None, 1e-6, *rows, bias, *panels, bias) == said("w2")
    assert [op.why_not() for op in (linear, swiglu_mlp, gelu_mlp)] == [None] * 3
