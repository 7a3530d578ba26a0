"""Attention inside overlapping tiles, with its result written as one stitched canvas.

For Flash-VL's implicit semantic stitching (arXiv 2505.09498): every token still sees its whole
tile, but where tiles overlap only one result an image position is wanted. Under `crop` the queries
that a neighbour owns are never computed: with 32 x 32 tiles and an overlap of 4, a 2 x 2 grid
drops 12 % of the queries and a 3 x 3 grid 16 %. `mean` and `linear` blend in fp32, rounded once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flashvl_kernels import checks, triton
from flashvl_kernels.attention import attend, check_heads, cuda_reason
from flashvl_kernels.ops.stitch_tiles import stitch_wide
from flashvl_kernels.spec import SUPPORTS_ALL, Cost, Maker, OpSpec, Sample, call, nbytes
from flashvl_kernels.tiles import TileGrid

Flat = tuple[int, int, int, int, str, int]


def check(q: Tensor, k: Tensor, v: Tensor, scale: float | None, *flat: *Flat) -> None:
    op, grid = "stitched_tile_attention", TileGrid.from_flat(flat)
    checks.rank(op, "q", q, "[B*T, t*t, H, D]")
    check_heads(op, q, scale)
    for argument, tensor in (("k", k), ("v", v)):
        checks.shape(op, argument, tensor, q.shape, "the shape of q")
        checks.same_dtype(op, argument, tensor, q, "q")
    if q.shape[0] % grid.tiles != 0:
        checks.fail(
            op,
            "q",
            f"has {q.shape[0]} tiles",
            f"a multiple of {grid.tiles}, the tiles of a {grid.rows}x{grid.cols} grid",
            "Pass all tiles of every image, row-major, and leave the thumbnail out.",
        )
    if q.shape[1] != grid.tile_len:
        checks.fail(
            op,
            "q",
            f"has {q.shape[1]} tokens a tile",
            f"{grid.tile_len}, a tile of {grid.tile}x{grid.tile} patches",
            "Drop the CLS token with q[:, 1:] or correct grid.tile.",
        )


def reference(q: Tensor, k: Tensor, v: Tensor, scale: float | None, *flat: *Flat) -> Tensor:
    grid = TileGrid.from_flat(flat)
    if grid.rule == "crop":
        return _owned_queries(q, k, v, scale, grid)
    tiles = attend(q, k.transpose(1, 2), v.transpose(1, 2), scale)
    return stitch_wide(tiles.flatten(2), grid).to(q.dtype).unflatten(2, q.shape[2:])


def _owned_queries(q: Tensor, k: Tensor, v: Tensor, scale: float | None, grid: TileGrid) -> Tensor:
    """Each tile's own rectangle of queries, put side by side to bands, then to the canvas."""
    squares = q.unflatten(1, (grid.tile, grid.tile))
    bands = []
    for row in range(grid.rows):
        band = []
        for index in range(row * grid.cols, (row + 1) * grid.cols):
            top, bottom, left, right = grid.owned(index)
            mine = slice(index, None, grid.tiles)
            queries = squares[mine, top:bottom, left:right].flatten(1, 2)
            out = attend(queries, k[mine].transpose(1, 2), v[mine].transpose(1, 2), scale)
            band.append(out.unflatten(1, (bottom - top, right - left)))
        bands.append(torch.cat(band, 2))
    return torch.cat(bands, 1).flatten(1, 2)


def fake(q: Tensor, k: Tensor, v: Tensor, scale: float | None, *flat: *Flat) -> Tensor:
    grid = TileGrid.from_flat(flat)
    return q.new_empty(q.shape[0] // grid.tiles, grid.canvas_len, q.shape[2], q.shape[3])


def cost(q: Tensor, k: Tensor, v: Tensor, scale: float | None, *flat: *Flat) -> Cost:
    grid = TileGrid.from_flat(flat)
    images, width = q.shape[0] // grid.tiles, q.shape[2] * q.shape[3]
    queries, canvas = images * grid.patches_read, images * grid.canvas_len
    blended = 0 if grid.rule == "crop" else 2 * (queries - canvas) * width
    token = width * q.element_size()
    return Cost(
        nbytes(k, v) + queries * token,
        canvas * token,
        4 * queries * grid.tile_len * width + blended,
    )


def _qkv(m: Maker, *shape: int) -> tuple[Tensor, Tensor, Tensor]:
    return m.normal(*shape), m.normal(*shape), m.normal(*shape)


def _fused(m: Maker, *shape: int) -> tuple[Tensor, ...]:
    """q, k and v as they lie in the output of one fused projection."""
    *outer, heads, head_dim = shape
    return m.normal(*outer, 3, heads, head_dim).unbind(-3)


def _not_finite(m: Maker) -> tuple[Tensor, Tensor, Tensor]:
    """A query nobody owns under crop, and a value that reaches all of tile 3."""
    q, k, v = _qkv(m, 4, 16, 2, 8)
    q[0, 15, 0, 3], v[3, 2, 1, 1] = float("nan"), float("inf")
    return q, k, v


SAMPLES = (
    Sample("crop", lambda m: call(*_qkv(m, 6, 16, 2, 72), TileGrid(2, 3, 4, 2))),
    Sample("mean", lambda m: call(*_qkv(m, 4, 16, 2, 24), TileGrid(2, 2, 4, 2, "mean"))),
    Sample("linear", lambda m: call(*_qkv(m, 2, 36, 1, 128), TileGrid(1, 2, 6, 2, "linear"))),
    Sample("two images", lambda m: call(*_qkv(m, 8, 16, 2, 16), TileGrid(2, 2, 4, 1)), "edge"),
    Sample(
        "one tile, border dropped",
        lambda m: call(*_qkv(m, 2, 36, 2, 64), TileGrid(1, 1, 6, border=1)),
        "edge",
    ),
    Sample(
        "odd overlap and border, linear",
        lambda m: call(*_qkv(m, 6, 25, 1, 7), TileGrid(3, 2, 5, 1, "linear", 1)),
        "edge",
    ),
    Sample(
        "half overlapping, own scale",
        lambda m: call(*_qkv(m, 3, 16, 2, 80), TileGrid(1, 3, 4, 2), scale=0.5),
        "edge",
    ),
    Sample("tiles of one patch", lambda m: call(*_qkv(m, 4, 1, 2, 8), TileGrid(2, 2, 1)), "edge"),
    Sample(
        "across kernel blocks, crop",
        lambda m: call(*_qkv(m, 2, 169, 1, 72), TileGrid(1, 2, 13, 3)),
        "edge",
    ),
    Sample(
        "across kernel blocks, linear",
        lambda m: call(*_qkv(m, 4, 144, 1, 20), TileGrid(2, 2, 12, 5, "linear", 1)),
        "edge",
    ),
    Sample("NaN and Inf", lambda m: call(*_not_finite(m), TileGrid(2, 2, 4, 2)), "edge"),
    Sample(
        "NaN and Inf, blended",
        lambda m: call(*_not_finite(m), TileGrid(2, 2, 4, 2, "linear")),
        "edge",
    ),
    Sample(
        "of one fused projection",
        lambda m: call(*_fused(m, 4, 16, 2, 24), TileGrid(2, 2, 4, 2)),
        "strided",
    ),
    Sample(
        "CLS dropped, blended",
        lambda m: call(*(t[:, 1:] for t in _qkv(m, 4, 17, 2, 8)), TileGrid(2, 2, 4, 2, "mean")),
        "strided",
    ),
    Sample("no images", lambda m: call(*_qkv(m, 0, 16, 2, 8), TileGrid(2, 2, 4, 2)), "zero"),
    Sample(
        "no images, blended",
        lambda m: call(*_qkv(m, 0, 16, 2, 8), TileGrid(2, 2, 4, 2, "mean")),
        "zero",
    ),
    Sample(
        "tiles past 2^31",
        lambda m: call(*(m.far(2, 16, 2, 8) for _ in range(3)), TileGrid(1, 2, 4, 2)),
        "far",
    ),
    Sample(
        "a tuple for the grid",
        lambda m: call(*_qkv(m, 6, 16, 2, 8), (2, 3, 4)),
        "hostile",
        error="grid is a tuple; needs a TileGrid",
    ),
    Sample(
        "a tile is missing",
        lambda m: call(*_qkv(m, 5, 16, 2, 8), TileGrid(2, 3, 4)),
        "hostile",
        error="q has 5 tiles; needs a multiple of 6, the tiles of a 2x3 grid",
    ),
    Sample(
        "CLS left in",
        lambda m: call(*_qkv(m, 4, 17, 2, 8), TileGrid(2, 2, 4)),
        "hostile",
        error="q has 17 tokens a tile; needs 16",
    ),
    Sample(
        "heads not split",
        lambda m: call(*_qkv(m, 4, 16, 16), TileGrid(2, 2, 4)),
        "hostile",
        error=r"q has shape \[4, 16, 16\]; needs 4 axes",
    ),
    Sample(
        "v of another shape",
        lambda m: call(
            m.normal(4, 16, 2, 8), m.normal(4, 16, 2, 8), m.normal(4, 16, 2, 9), TileGrid(2, 2, 4)
        ),
        "hostile",
        error=r"v has shape \[4, 16, 2, 9\]; needs \[4, 16, 2, 8\]",
    ),
    Sample(
        "integers",
        lambda m: call(*(m.integers(0, 9, 1, 16, 2, 8) for _ in range(3)), TileGrid(1, 1, 4)),
        "hostile",
        error="q has dtype int64",
    ),
    Sample(
        "infinite scale",
        lambda m: call(*_qkv(m, 1, 16, 2, 8), TileGrid(1, 1, 4), scale=float("inf")),
        "hostile",
        error="scale is inf; needs a finite number",
    ),
    Sample(
        "AIMv2 2x2, 12.5 % crop",
        lambda m: call(*_qkv(m, 4, 1024, 12, 128), TileGrid(2, 2, 32, 4)),
        "bench",
        family="flash-vl",
    ),
    Sample(
        "AIMv2 2x2, 12.5 % linear",
        lambda m: call(*_qkv(m, 4, 1024, 12, 128), TileGrid(2, 2, 32, 4, "linear")),
        "bench",
        family="flash-vl",
    ),
)

SPEC = OpSpec(
    name="stitched_tile_attention",
    schema="(Tensor q, Tensor k, Tensor v, float? scale, int rows, int cols, int tile,"
    " int overlap, str rule, int border) -> Tensor",
    check=check,
    reference=reference,
    fake=fake,
    cost=cost,
    samples=SAMPLES,
    kernels={
        "cpu": SUPPORTS_ALL,
        "cuda": cuda_reason,
        "triton": triton.supports("stitched_tile_attention"),
    },
)


@SPEC.public
def stitched_tile_attention(
    q: Tensor, k: Tensor, v: Tensor, grid: TileGrid, scale: float | None = None
) -> Tensor:
    """`tile_attention` over overlapping tiles, stitched to one canvas an image.

    q, k, v: [B*T, t*t, H, D] in bfloat16, float16 or float32, with any strides; the T = grid.tiles
    tiles of each image row-major, and so the t*t tokens of each tile. scale: D ** -0.5 when left
    out.
    Returns [B, canvas_rows * canvas_cols, H, D], row-major: what `stitch_tiles` makes of
    `tile_attention`'s result.
    Raises TypeError for dtypes, ValueError for shapes that do not fit the grid, devices and scale.
    """
    layout = checks.instance("stitched_tile_attention", "grid", grid, TileGrid).flat()
    return SPEC(q, k, v, scale, *layout)
