"""Attention inside tiles against its formula; packed and stitched calls against plain ones."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from flashvl_kernels.backends import backend
from flashvl_kernels.ops.stitch_tiles import stitch_tiles
from flashvl_kernels.ops.stitched_tile_attention import stitched_tile_attention
from flashvl_kernels.ops.tile_attention import tile_attention
from flashvl_kernels.tiles import TileGrid


def qkv(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype) for _ in range(3)]


def formula(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """softmax(q k^T * scale) v in float64, for [T, N, H, D]."""
    q, k, v = q.double(), k.double(), v.double()
    weights = (torch.einsum("tnhd,tmhd->thnm", q, k) * scale).softmax(-1)
    return torch.einsum("thnm,tmhd->tnhd", weights, v)


@pytest.mark.parametrize("head_dim", [64, 72, 80, 128, 7])
def test_the_formula(head_dim: int) -> None:
    q, k, v = qkv(2, 19, 3, head_dim)
    got = tile_attention(q, k, v)
    torch.testing.assert_close(got, formula(q, k, v, head_dim**-0.5).float())
    got = tile_attention(q, k, v, scale=0.7)
    torch.testing.assert_close(got, formula(q, k, v, 0.7).float())


@pytest.mark.parametrize("lengths", [[5, 9, 9, 0, 3], [0, 0], [26], [1] * 26, [13, 13]])
def test_packed_tiles_equal_separate_ones(lengths: list[int]) -> None:
    q, k, v = qkv(sum(lengths), 2, 24)
    got = tile_attention(q, k, v, torch.tensor(lengths))
    parts = [
        tile_attention(*(t[None] for t in tile))[0]
        for tile in zip(*(t.split(lengths) for t in (q, k, v)), strict=True)
    ]
    torch.testing.assert_close(got, torch.cat(parts))


def test_packed_gradients_equal_separate_ones_compiled_too() -> None:
    """A compiled backward does not know the lengths and takes another way."""
    lengths = torch.tensor([4, 0, 7, 2])
    inputs = [t.double().requires_grad_() for t in qkv(13, 2, 8)]
    weights = torch.randn(13, 2, 8, generator=torch.Generator().manual_seed(9)).double()

    def loss(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor) -> Tensor:
        return (tile_attention(q, k, v, lengths) * weights).sum()

    eager = torch.autograd.grad(loss(*inputs, lengths), inputs)
    parts = [
        (formula(*(t[None] for t in tile), 8**-0.5)[0] * w).sum()
        for *tile, w in zip(*(t.split(lengths.tolist()) for t in (*inputs, weights)), strict=True)
    ]
    expected = torch.autograd.grad(torch.stack(parts).sum(), inputs)
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    traced = torch.autograd.grad(compiled(*inputs, lengths), inputs)
    for e, mine, theirs in zip(expected, eager, traced, strict=True):
        torch.testing.assert_close(mine, e)
        torch.testing.assert_close(theirs, e)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("keys", [1, 6, 40])
def test_nan_is_not_taken_for_a_mask(keys: int, dtype: torch.dtype) -> None:
    """PyTorch's CPU kernel returns zeros for rows whose scores are all NaN."""
    q, k, v = qkv(3, keys, 2, 8, dtype=dtype)
    q[0, 0, 1, 3] = float("nan")
    k[1, :, 0, 2] = float("nan")
    lost = tile_attention(q, k, v).isnan()
    assert lost[0, 0, 1].all() and int(lost[0].sum()) == 8
    assert lost[1, :, 0].all() and not lost[1, :, 1].any()
    assert not lost[2].any()


GRIDS = [
    TileGrid(2, 3, 6, 2),
    TileGrid(3, 2, 5, 1, border=2),
    TileGrid(1, 1, 4, border=1),
    TileGrid(2, 2, 6, 3, "mean"),
    TileGrid(2, 2, 6, 2, "linear", 1),
]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_stitched_equals_attention_then_stitching(grid: TileGrid) -> None:
    q, k, v = qkv(2 * grid.tiles, grid.tile_len, 2, 8, dtype=torch.float64)
    got = stitched_tile_attention(q, k, v, grid, scale=0.4)
    stitched = stitch_tiles(formula(q, k, v, 0.4).flatten(2), grid)
    torch.testing.assert_close(got, stitched.unflatten(2, (2, 8)))


def test_queries_of_a_neighbour_are_never_computed() -> None:
    """Under crop a query outside its tile's own rectangle has no gradient and no effect."""
    grid = TileGrid(2, 2, 6, 2)
    q, k, v = qkv(grid.tiles, grid.tile_len, 1, 8)
    expected = stitched_tile_attention(q, k, v, grid)
    owned = torch.zeros(grid.tiles, grid.tile, grid.tile, dtype=torch.bool)
    for index in range(grid.tiles):
        top, bottom, left, right = grid.owned(index)
        owned[index, top:bottom, left:right] = True
    q[~owned.flatten(1)] = float("nan")
    assert int(owned.sum()) == grid.canvas_len < grid.tiles * grid.tile_len
    assert torch.equal(stitched_tile_attention(q, k, v, grid), expected)


def test_blending_happens_before_rounding() -> None:
    """Two tiles' features that round away from their mean: blended in fp32, rounded once."""
    grid = TileGrid(1, 2, 2, 1, "mean")
    q, k, v = qkv(2, 4, 1, 8, dtype=torch.bfloat16)
    with backend("torch"):  # a kernel may blend features that it never rounded
        tiles = tile_attention(q, k, v).flatten(2)
        got = stitched_tile_attention(q, k, v, grid)[0, 1].flatten()
    assert torch.equal(got, ((tiles[0, 1].float() + tiles[1, 0].float()) / 2).bfloat16())
