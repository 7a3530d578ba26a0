"""Launch plans for the figures of five GPUs: what runs, how much of the device it fills."""

from __future__ import annotations

import pytest
import torch

from flashvl_kernels.cuda import norm_plan, swiglu
from flashvl_kernels.cuda.device import A100, B200, DEVICES, H100, L4, RTX_4090, Device
from flashvl_kernels.cuda.launch import rows_of, vector_width
from flashvl_kernels.cuda.norm_plan import NormPlan


@pytest.mark.parametrize(
    ("device", "grid"), [(H100, 1024), (A100, 1024), (L4, 696), (RTX_4090, 1024), (B200, 1024)]
)
def test_many_decoder_rows_get_a_warp_each(device: Device, grid: int) -> None:
    """1536 columns are 6 vectors a lane; as many blocks as threads fit."""
    assert norm_plan.plan(4096, 1536, 8, device) == NormPlan(8, 8, False, grid, (32, 4))


@pytest.mark.parametrize("device", DEVICES, ids=lambda d: d.name)
def test_one_decoder_row_gets_a_block(device: Device) -> None:
    """A row alone is latency: all 192 vectors are loaded at once."""
    assert norm_plan.plan(1, 1536, 8, device) == NormPlan(8, 1, True, 1, (192, 1))


def test_rows_that_leave_multiprocessors_idle_get_blocks() -> None:
    """300 rows are 75 blocks of warps: enough for an L4's 58 multiprocessors, not for an H100."""
    assert not norm_plan.plan(300, 1536, 8, L4).block_row
    assert norm_plan.plan(300, 1536, 8, H100) == NormPlan(8, 1, True, 300, (192, 1))


@pytest.mark.parametrize(
    ("columns", "vector", "held"),
    [(4096, 8, 1), (8192, 8, 2), (16384, 8, 4), (16392, 8, 0), (8192, 4, 4), (300, 1, 0)],
)
def test_rows_by_width(columns: int, vector: int, held: int) -> None:
    found = norm_plan.plan(1000, columns, vector, H100)
    assert (found.block_row, found.held) == (True, held)
    assert found.held == 0 or found.held * found.block[0] * vector >= columns


@pytest.mark.parametrize("device", DEVICES, ids=lambda d: d.name)
@pytest.mark.parametrize("rows", [1, 57, 233, 1024, 10**6])
@pytest.mark.parametrize("columns", [1, 77, 192, 1152, 1536, 8960, 10**5])
def test_every_norm_plan_covers_its_rows(device: Device, rows: int, columns: int) -> None:
    for vector in (1, 4, 8):
        found = norm_plan.plan(rows, columns, vector, device)
        assert 1 <= found.grid <= rows
        assert found.block[0] * found.block[1] <= norm_plan.BLOCK_THREADS
        if found.held:
            assert found.held * found.block[0] * vector >= columns


def test_swiglu_of_one_row_is_spread_over_the_device() -> None:
    """1120 vectors: 9 blocks of 64 threads, 2 vectors each, not 3 of 256."""
    assert swiglu.plan(1, 8960, 8, H100) == swiglu.SwigluPlan((9, 1), (64, 1))
    assert swiglu.plan(1024, 8960, 8, H100) == swiglu.SwigluPlan((3, 1024), (256, 1))


@pytest.mark.parametrize("device", DEVICES, ids=lambda d: d.name)
@pytest.mark.parametrize("rows", [1, 5, 300, 10**6])
@pytest.mark.parametrize("half", [1, 48, 77, 8960, 10**6])
def test_every_swiglu_plan_covers_its_rows(device: Device, rows: int, half: int) -> None:
    for vector in (1, 8):
        found = swiglu.plan(rows, half, vector, device)
        along, together = found.block
        assert found.grid[0] * along * swiglu.VECTORS * vector >= half
        assert found.grid[1] <= swiglu.GRID_Y_LIMIT
        assert along * together <= swiglu.THREADS and along % 32 == 0


def test_rows_are_read_where_they_lie() -> None:
    x = torch.zeros(2, 5, 24)
    for view, expected in [
        (x, (10, 24, 0)),
        (x[:, 1:], (4, 24, 120)),
        (x[..., :8], (10, 24, 0)),
        (x[:, :1], (2, 120, 0)),
        (x[0, 0], (1, 24, 0)),
    ]:
        tensor, rows = rows_of(view)
        assert tensor is view
        assert (rows.inner, rows.inner_stride, rows.outer_stride) == expected


def test_rows_without_neighbours_are_copied() -> None:
    tensor, rows = rows_of(torch.zeros(6, 48).transpose(0, 1))
    assert tensor.is_contiguous() and rows.inner_stride == 6


def test_vectors_need_every_stride_and_address() -> None:
    assert vector_width(2, (1536, 1536), (256, 16)) == 8
    assert vector_width(4, (1536,), (16,)) == 4
    assert vector_width(2, (1536, 1540), (256,)) == 1
    assert vector_width(2, (1536,), (264,)) == 1
