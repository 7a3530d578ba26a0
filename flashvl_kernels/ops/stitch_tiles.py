"""Features of overlapping tiles, put together to one canvas.

Flash-VL's implicit semantic stitching (arXiv 2505.09498) lets neighbouring tiles overlap and takes
consensus features where they meet. What exactly it merges is not published, so the rule is part of
the `TileGrid`: crop, mean or linear. Sums are taken in fp32 and rounded once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flashvl_kernels import checks, triton
from flashvl_kernels.cuda import stitch_tiles as cuda_plan
from flashvl_kernels.spec import SUPPORTS_ALL, Cost, Maker, OpSpec, Sample, call
from flashvl_kernels.tiles import TileGrid


def check(x: Tensor, rows: int, cols: int, tile: int, overlap: int, rule: str, border: int) -> None:
    checks.is_float("stitch_tiles", "x", x)
    check_tiles("stitch_tiles", x, TileGrid(rows, cols, tile, overlap, rule, border))


def check_tiles(op: str, x: Tensor, grid: TileGrid) -> None:
    """x [B*T, t*t, C] holds whole images of `grid`."""
    checks.rank(op, "x", x, "[B*T, t*t, C]")
    if x.shape[0] % grid.tiles != 0:
        checks.fail(
            op,
            "x",
            f"has {x.shape[0]} tiles",
            f"a multiple of {grid.tiles}, the tiles of a {grid.rows}x{grid.cols} grid",
            "Pass all tiles of every image, row-major, and leave the thumbnail out.",
        )
    if x.shape[1] != grid.tile_len:
        checks.fail(
            op,
            "x",
            f"has {x.shape[1]} tokens a tile",
            f"{grid.tile_len}, a tile of {grid.tile}x{grid.tile} patches",
            "Drop the CLS token with x[:, 1:] or correct grid.tile.",
        )


def stitch_wide(x: Tensor, grid: TileGrid) -> Tensor:
    """The canvas [B, canvas_len, C]: in fp32 where values were summed, else in the dtype of x."""
    patches = x.reshape(x.shape[0] // grid.tiles, grid.tiles * grid.tile_len, x.shape[2])
    index, weight = grid.weights(x.device)
    if index.shape[1] == 1:
        return patches.index_select(1, index[:, 0])
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    shares = weight.to(wide).unsqueeze(-1).unbind(1)
    parts = [
        # Weight 0 stands for no source: an infinite feature must not become NaN through it.
        torch.where(share == 0, 0, patches.index_select(1, source).to(wide) * share)
        for source, share in zip(index.unbind(1), shares, strict=True)
    ]
    return sum(parts[1:], start=parts[0])


def reference(
    x: Tensor, rows: int, cols: int, tile: int, overlap: int, rule: str, border: int
) -> Tensor:
    return stitch_wide(x, TileGrid(rows, cols, tile, overlap, rule, border)).to(x.dtype)


def fake(
    x: Tensor, rows: int, cols: int, tile: int, overlap: int, rule: str, border: int
) -> Tensor:
    grid = TileGrid(rows, cols, tile, overlap, rule, border)
    return x.new_empty(x.shape[0] // grid.tiles, grid.canvas_len, x.shape[2])


def cost(x: Tensor, rows: int, cols: int, tile: int, overlap: int, rule: str, border: int) -> Cost:
    grid = TileGrid(rows, cols, tile, overlap, rule, border)
    images = x.shape[0] // grid.tiles
    token = x.shape[2] * x.element_size()
    blended = 0 if rule == "crop" else 2 * (grid.patches_read - grid.canvas_len) * x.shape[2]
    return Cost(
        images * grid.patches_read * token, images * grid.canvas_len * token, images * blended
    )


def _not_finite(m: Maker) -> Tensor:
    x = m.normal(4, 36, 8)
    x[0, 5, 3], x[1, 0, 5], x[2, 35, 7] = float("nan"), float("inf"), -float("inf")
    return x


SAMPLES = (
    Sample("two by three, crop", lambda m: call(m.normal(6, 64, 24), TileGrid(2, 3, 8, 2))),
    Sample("two images, mean", lambda m: call(m.normal(8, 36, 16), TileGrid(2, 2, 6, 2, "mean"))),
    Sample("linear", lambda m: call(m.normal(4, 64, 24), TileGrid(2, 2, 8, 4, "linear"))),
    Sample(
        "odd overlap and border",
        lambda m: call(m.normal(6, 49, 5), TileGrid(3, 2, 7, 3, "linear", 2)),
        "edge",
    ),
    Sample("odd overlap, crop", lambda m: call(m.normal(4, 25, 3), TileGrid(2, 2, 5, 1)), "edge"),
    Sample("one tile", lambda m: call(m.normal(2, 64, 8), TileGrid(1, 1, 8, 4, "mean")), "edge"),
    Sample(
        "one tile, border dropped",
        lambda m: call(m.normal(1, 64, 8), TileGrid(1, 1, 8, border=1)),
        "edge",
    ),
    Sample("no overlap", lambda m: call(m.normal(3, 16, 7), TileGrid(1, 3, 4)), "edge"),
    Sample("tiles of one patch", lambda m: call(m.normal(6, 1, 4), TileGrid(2, 3, 1)), "edge"),
    Sample(
        "NaN and Inf",
        lambda m: call(_not_finite(m), TileGrid(2, 2, 6, 3, "linear")),
        "edge",
    ),
    Sample(
        "CLS dropped",
        lambda m: call(m.normal(4, 37, 8)[:, 1:], TileGrid(2, 2, 6, 2, "mean")),
        "strided",
    ),
    Sample(
        "tokens with a gap, crop",
        lambda m: call(m.strided(2, 36, 9), TileGrid(1, 2, 6, 3)),
        "strided",
    ),
    Sample("no images", lambda m: call(m.normal(0, 16, 8), TileGrid(2, 2, 4, 2, "mean")), "zero"),
    Sample("no channels", lambda m: call(m.normal(4, 16, 0), TileGrid(2, 2, 4, 1)), "zero"),
    Sample("tiles past 2^31", lambda m: call(m.far(2, 16, 8), TileGrid(1, 2, 4, 2)), "far"),
    Sample(
        "a tuple for the grid",
        lambda m: call(m.normal(6, 16, 8), (2, 3, 4)),
        "hostile",
        error="grid is a tuple; needs a TileGrid",
    ),
    Sample(
        "third token past 2^31",
        lambda m: call(m.far(4, 2, 8, stride=2**30)[None, :, 0], TileGrid(1, 1, 2)),
        "far",
    ),
    Sample(
        "third tile past 2^31",
        lambda m: call(m.far(3, 16, 8, stride=2**30), TileGrid(1, 3, 4, 2)),
        "far",
    ),
    Sample(
        "a tile is missing",
        lambda m: call(m.normal(5, 16, 8), TileGrid(2, 3, 4)),
        "hostile",
        error="x has 5 tiles; needs a multiple of 6, the tiles of a 2x3 grid",
    ),
    Sample(
        "CLS left in",
        lambda m: call(m.normal(4, 17, 8), TileGrid(2, 2, 4)),
        "hostile",
        error="x has 17 tokens a tile; needs 16",
    ),
    Sample(
        "two axes",
        lambda m: call(m.normal(16, 8), TileGrid(1, 1, 4)),
        "hostile",
        error=r"x has shape \[16, 8\]; needs 3 axes",
    ),
    Sample(
        "integers",
        lambda m: call(m.integers(0, 9, 4, 16, 8), TileGrid(2, 2, 4)),
        "hostile",
        error="x has dtype int64",
    ),
    Sample(
        "AIMv2 2x2, 12.5 % mean",
        lambda m: call(m.normal(4, 1024, 1536), TileGrid(2, 2, 32, 4, "mean")),
        "bench",
        family="flash-vl",
    ),
    Sample(
        "AIMv2 3x3, 12.5 % linear",
        lambda m: call(m.normal(9, 1024, 1536), TileGrid(3, 3, 32, 4, "linear")),
        "bench",
        family="flash-vl",
    ),
    Sample(
        "64 MiB",
        lambda m: call(m.normal(20, 1024, 1536), TileGrid(2, 2, 32, 4, "mean")),
        "bench",
        family="stream",
    ),
    Sample(
        "AIMv2 one tile, border 4",
        lambda m: call(m.normal(1, 1024, 1536), TileGrid(1, 1, 32, border=4)),
        "bench",
        family="flash-vl",
    ),
    Sample(
        "SigLIP 2x2 padded grid",
        lambda m: call(m.normal(4, 729, 1152), TileGrid(2, 2, 27)),
        "bench",
        family="llava-onevision",
    ),
)

SPEC = OpSpec(
    name="stitch_tiles",
    schema="(Tensor x, int rows, int cols, int tile, int overlap, str rule, int border) -> Tensor",
    check=check,
    reference=reference,
    fake=fake,
    cost=cost,
    samples=SAMPLES,
    kernels={
        "cpu": SUPPORTS_ALL,
        "cuda": cuda_plan.why_not,
        "triton": triton.supports("stitch_tiles"),
    },
)


@SPEC.public
def stitch_tiles(x: Tensor, grid: TileGrid) -> Tensor:
    """Put the features of overlapping tiles together to one canvas an image.

    x: [B*T, t*t, C] in bfloat16, float16 or float32; the T = grid.tiles tiles of each image
    row-major, and so the t*t patches of each tile.
    Returns [B, canvas_rows * canvas_cols, C], row-major.
    Raises TypeError for the dtype, ValueError for a shape that does not fit the grid.
    """
    layout = checks.instance("stitch_tiles", "grid", grid, TileGrid).flat()
    return SPEC(x, *layout)
