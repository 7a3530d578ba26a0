"""TileGrid's geometry, property-tested, and stitch_tiles against a tile-by-tile account of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses import FakeTensorMode

from flashvl_kernels import tiles
from flashvl_kernels.ops.stitch_tiles import stitch_tiles
from flashvl_kernels.tiles import RULES, TileGrid


@st.composite
def grids(draw: st.DrawFn, rules: tuple[str, ...] = RULES) -> TileGrid:
    """Any small grid that the checks let through."""
    tile = draw(st.integers(1, 9))
    return TileGrid(
        draw(st.integers(1, 4)),
        draw(st.integers(1, 4)),
        tile,
        draw(st.integers(0, tile // 2)),
        draw(st.sampled_from(rules)),
        draw(st.integers(0, (tile - 1) // 2)),
    )


def every(grid: TileGrid) -> list[tuple[int, int, int, int, int]]:
    """(tile, row, column, canvas row, canvas column) of each patch, border positions included."""
    return [
        (index, row, col, top + row - grid.border, left + col - grid.border)
        for index in range(grid.tiles)
        for top, left in [grid.tile_origin(index)]
        for row in range(grid.tile)
        for col in range(grid.tile)
    ]


def inside(grid: TileGrid, row: int, col: int) -> bool:
    return 0 <= row < grid.canvas[0] and 0 <= col < grid.canvas[1]


def share(grid: TileGrid, index: int, row: int, col: int) -> float:
    """Weight of a tile's patch, from the distance to the sides where a neighbour overlaps."""
    total = 1.0
    for place, local, n in (
        (index // grid.cols, row, grid.rows),
        (index % grid.cols, col, grid.cols),
    ):
        for distance, neighbour in (
            (local + 0.5, place > 0),
            (grid.tile - local - 0.5, place < n - 1),
        ):
            if neighbour and distance < grid.overlap:
                total *= 0.5 if grid.rule == "mean" else distance / grid.overlap
    return total


SETTINGS = settings(deadline=None, max_examples=80, derandomize=True)


@SETTINGS
@given(grids())
def test_every_canvas_position_is_owned_exactly_once(grid: TileGrid) -> None:
    owners: dict[tuple[int, int], int] = {}
    for index, row, col, canvas_row, canvas_col in every(grid):
        row0, row1, col0, col1 = grid.owned(index)
        if row0 <= row < row1 and col0 <= col < col1:
            assert inside(grid, canvas_row, canvas_col), "a patch of the border is owned"
            assert (canvas_row, canvas_col) not in owners, "a position is owned twice"
            owners[canvas_row, canvas_col] = index
    assert len(owners) == grid.canvas_len, "a position has no owner"
    assert set(owners.values()) == set(range(grid.tiles)), "a tile owns nothing"
    expected = [[owners[r, c] for c in range(grid.canvas[1])] for r in range(grid.canvas[0])]
    assert grid.owner().tolist() == expected


@SETTINGS
@given(grids())
def test_sources_lie_where_their_canvas_position_is(grid: TileGrid) -> None:
    index, weight = grid.weights()
    assert (index.dtype, weight.dtype) == (torch.int64, torch.float64)
    position = torch.tensor([[r, c] for *_, r, c in every(grid)])[index]
    width = grid.canvas[1]
    here = torch.tensor([[p // width, p % width] for p in range(grid.canvas_len)])
    assert torch.equal(position, here[:, None].expand_as(position))


@SETTINGS
@given(grids())
def test_weights_are_those_of_the_distance_to_the_tile_edges(grid: TileGrid) -> None:
    index, weight = grid.weights()
    owners = grid.owner().tolist()
    sums = torch.zeros(grid.tiles * grid.tile_len, dtype=torch.float64)
    found = sums.scatter_add_(0, index.flatten(), weight.flatten()).tolist()
    for patch, (tile, row, col, canvas_row, canvas_col) in enumerate(every(grid)):
        expected = 0.0
        if inside(grid, canvas_row, canvas_col):
            if grid.rule == "crop":
                expected = float(owners[canvas_row][canvas_col] == tile)
            else:
                expected = share(grid, tile, row, col)
        assert abs(found[patch] - expected) < 1e-12
    torch.testing.assert_close(weight.sum(1), torch.ones(grid.canvas_len, dtype=torch.float64))
    assert grid.patches_read == sum(value > 0 for value in found)


@SETTINGS
@given(grids(), st.integers(1, 3))
def test_a_plane_over_the_canvas_survives_stitching(grid: TileGrid, images: int) -> None:
    """Where tiles agree, no rule may change anything: each image is a tilted plane."""
    plane = torch.tensor([[3.0 * r - 2.0 * c, r * c] for *_, r, c in every(grid)])
    x = torch.stack([plane * (i + 1) for i in range(images)])
    got = stitch_tiles(x.view(images * grid.tiles, grid.tile_len, 2), grid)
    height, width = grid.canvas
    expected = torch.tensor(
        [[3.0 * r - 2.0 * c, r * c] for r in range(height) for c in range(width)]
    )
    torch.testing.assert_close(
        got, torch.stack([expected * (i + 1) for i in range(images)]), rtol=1e-5, atol=1e-4
    )


def stitch_by_tiles(x: Tensor, grid: TileGrid) -> Tensor:
    """One image, added up tile by tile."""
    height, width = grid.canvas
    canvas = torch.zeros(height, width, x.shape[2], dtype=torch.float64)
    for index, row, col, canvas_row, canvas_col in every(grid):
        if inside(grid, canvas_row, canvas_col):
            part = x[index, row * grid.tile + col].double() * share(grid, index, row, col)
            canvas[canvas_row, canvas_col] += part
    return canvas.flatten(0, 1)


@settings(deadline=None, max_examples=30, derandomize=True)
@given(grids(("mean", "linear")))
def test_blended_stitching_adds_up_the_tiles(grid: TileGrid) -> None:
    x = torch.randn(grid.tiles, grid.tile_len, 2, generator=torch.Generator().manual_seed(1))
    got = stitch_tiles(x, grid)[0].double()
    torch.testing.assert_close(got, stitch_by_tiles(x, grid), rtol=1e-6, atol=1e-6)


def test_the_middle_of_an_odd_overlap_goes_to_the_first_tile() -> None:
    assert TileGrid(1, 2, 4, 1).owner()[0].tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert TileGrid(1, 2, 6, 3).owner()[0].tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1]
    assert TileGrid(2, 1, 6, 3).owner()[:, 0].tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1]
    assert TileGrid(1, 2, 4, 2).owner()[0].tolist() == [0, 0, 0, 1, 1, 1]


def test_the_linear_ramp_of_four_patches() -> None:
    _, weight = TileGrid(1, 2, 8, 4, "linear").weights()
    assert weight[4:8, 1].tolist() == [1 / 8, 3 / 8, 5 / 8, 7 / 8]


def test_flash_vl_sizes() -> None:
    """12.5 % of a 32-patch tile: the 24x24 core of one tile, and the canvas of 2x2 and 3x4."""
    assert TileGrid(1, 1, 32, border=4).canvas == (24, 24)
    assert TileGrid(2, 2, 32, 4, "mean").canvas == (60, 60)
    assert TileGrid(3, 4, 32, 4, "mean", 4).canvas == (80, 108)
    assert TileGrid(3, 4, 32, 4, "mean", 4).canvas_full == (88, 116)


def test_flat_round_trip() -> None:
    grid = TileGrid(2, 3, 8, 2, "linear", 1)
    assert TileGrid.from_flat(grid.flat()) == grid


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ((0, 1, 4), "TileGrid.rows is 0: it must be at least 1"),
        ((1, -2, 4), "TileGrid.cols is -2"),
        ((1, 1, 0), "TileGrid.tile is 0"),
        ((1, 1, 4, -1), "TileGrid.overlap is -1: it must be at least 0"),
        ((2, 2, 4, 4), "TileGrid.overlap is 4 with tile 4: it may be at most half"),
        ((2, 2, 5, 3), "TileGrid.overlap is 3 with tile 5"),
        ((1, 1, 4, 0, "median"), "TileGrid.rule is 'median': it must be one of crop, mean, linear"),
        ((1, 1, 4, 0, "crop", 2), "TileGrid.border is 2 with tile 4: it must be below half"),
        ((1, 1, 4, 0, "crop", -1), "TileGrid.border is -1"),
    ],
)
def test_impossible_grids_name_the_field(fields: tuple[Any, ...], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        TileGrid(*fields)


@pytest.mark.parametrize("value", [2.0, "2", None, True])
def test_a_field_that_is_no_integer(value: Any) -> None:
    with pytest.raises(TypeError, match=r"TileGrid.rows is .* it must be an int, in tiles"):
        TileGrid(value, 1, 4)


def test_a_tile_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="this grid of 2x3 has tiles 0 to 5"):
        TileGrid(2, 3, 4).owned(6)


def test_index_tables_are_cached_as_plain_tensors() -> None:
    """A table first built in a trace or in inference mode must serve a backward pass later."""
    grid = TileGrid(2, 2, 6, 3, "mean", 1)
    tiles._weights.cache_clear()
    with FakeTensorMode():
        assert grid.weights()[0].shape == (grid.canvas_len, 4)
    with torch.inference_mode():
        index, weight = grid.weights()
    assert type(index) is Tensor and not index.is_inference() and not weight.is_inference()
    assert grid.weights()[0] is index
    x = torch.ones(4, 36, 1, requires_grad=True)
    stitch_tiles(x, grid).sum().backward()
    assert x.grad is not None
    assert float(x.grad.sum()) == pytest.approx(grid.canvas_len)


def test_crop_moves_bits() -> None:
    """No arithmetic under crop: signed zeros and NaN payloads pass, and neighbours don't leak."""
    x = torch.zeros(2, 16, 1)
    x[0], x[1] = -0.0, float("nan")
    got = stitch_tiles(x, TileGrid(1, 2, 4, 2)).view(4, 6)
    assert got[:, :3].eq(0).all() and got[:, :3].signbit().all() and got[:, 3:].isnan().all()
