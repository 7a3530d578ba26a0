"""The choice of a launch: what must hold for every shape and device."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from flashvl_kernels.gpu import A100, H100, MI300X, Device
from flashvl_kernels.triton import launch

DEVICES = [H100, replace(A100, multiprocessors=1), MI300X]
COLUMNS = (1, 2, 24, 77, 96, 1152, 1536, 2048, 2049, 8960, 32768)


@pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.arch)
def test_a_tile_fits_the_problem_and_the_block(device: Device) -> None:
    for rows, columns, size in itertools.product((1, 7, 300, 10**6), COLUMNS, (2, 4)):
        tile = launch.tile(rows, columns, size, device, widest=32768)
        assert columns <= tile.columns < 2 * columns
        assert 1 <= tile.warps * device.warp <= 1024
        assert all(n & (n - 1) == 0 for n in (tile.rows, tile.columns, tile.warps))
        assert tile.rows < 2 * rows
        assert tile.rows == 1 or tile.rows * tile.columns * size <= 4096
        assert tile.rows * tile.columns <= 1024 * 32, "a thread holds at most 32 elements"
        held = tile.rows * tile.columns / (tile.warps * device.warp)
        assert held <= 32


def test_rows_join_only_where_every_processor_keeps_two_tiles() -> None:
    device = launch.EMULATED
    assert launch.tile(2 * device.multiprocessors, 64, 2, device).rows == 1
    assert launch.tile(100 * device.multiprocessors, 64, 2, device).rows == 32
    assert launch.tile(8 * device.multiprocessors, 64, 2, device).rows == 4


def views() -> dict[str, Tensor]:
    base = torch.arange(2.0 * 5 * 6 * 7).view(2, 5, 6, 7)
    return {
        "contiguous": base,
        "one axis": base[0, 0, 0],
        "first token dropped": base[:, :, 1:],
        "two gaps": base[:, 1:, 1:],
        "transposed": base.transpose(2, 3),
        "permuted": base.permute(2, 0, 1, 3),
        "expanded": base[:1].expand(3, 5, 6, 7),
        "columns skipped": base[..., ::2],
        "one row of each": base[:, :, 2:3],
    }


@pytest.mark.parametrize("name", views())
def test_rows_of_describes_the_elements_in_order(name: str) -> None:
    tensor = views()[name]
    rows = launch.rows_of(tensor)
    at = rows.tensor.storage_offset()
    storage = torch.empty(0).set_(rows.tensor.untyped_storage())
    read = [
        storage[at + r // rows.inner * rows.outer_stride + r % rows.inner * rows.inner_stride
                + c * rows.stride]
        for r in range(rows.count)
        for c in range(rows.columns)
    ]  # fmt: skip
    assert torch.equal(torch.stack(read), tensor.reshape(-1))
    copied = rows.tensor.data_ptr() != tensor.data_ptr()
    assert copied == (name == "two gaps"), "only a third axis costs a copy"


def test_strides_are_counted_in_what_divides_them_all() -> None:
    heads = torch.empty(5, 3, 72, dtype=torch.bfloat16)
    assert launch.unit_of(heads) == 8
    assert launch.unit_of(heads, length=36) == 4
    assert launch.unit_of(heads, torch.empty(9, 3)) == 1
    assert launch.unit_of(heads.float(), length=40) == 4, "an access moves 4 elements"
    assert launch.unit_of(torch.empty(7), length=2) == 2, "the stride of a channel counts not"
    assert launch.strides_of(heads, 8) == (27, 9, 1)
    assert launch.strides_of(heads.transpose(0, 1)[..., ::2], 8) == (9, 27, 2)
    expanded = heads[:1].expand(5, 3, 72)
    assert launch.unit_of(expanded) == 8 and launch.strides_of(expanded, 8) == (0, 9, 1)
