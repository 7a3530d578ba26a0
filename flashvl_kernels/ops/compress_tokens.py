"""Vision tokens compressed to fewer tokens, from tile or stitched canvas layout, with their norm.

Pixel shuffle is space to depth (Shi et al., arXiv 1609.05158, run backwards); InternVL,
DeepSeek-VL2, Qwen2-VL and LLaVA-OneVision differ in channel order, norm and pooling, which
`Compression` spells out. Pooling adds up in fp32 and rounds once, before the norm.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from flashvl_kernels import checks, triton
from flashvl_kernels import norm as norms
from flashvl_kernels.compression import Compression
from flashvl_kernels.cuda import compress_tokens as cuda_plan
from flashvl_kernels.norm import Norm, apply_norm, check_norm
from flashvl_kernels.ops.stitch_tiles import check_tiles, stitch_wide
from flashvl_kernels.samples.compress_tokens import SAMPLES
from flashvl_kernels.spec import SUPPORTS_ALL, Cost, OpSpec, nbytes
from flashvl_kernels.tiles import TileGrid

OP = "compress_tokens"


class _Layout(NamedTuple):
    """How x lies and what becomes of it: the schema arguments after the norm's."""

    how: Compression
    grid: TileGrid | None
    images: int
    height: int
    width: int


def _layout(x: Tensor, fields: tuple[Any, ...]) -> _Layout:
    how = Compression.from_flat(fields[:8])
    height, width, rows = fields[8:11]
    if rows != 0:
        grid = TileGrid.from_flat(fields[10:])
        return _Layout(how, grid, x.shape[0] // grid.tiles, *grid.canvas)
    if height == -1:
        height = width = math.isqrt(x.shape[1])
    return _Layout(how, None, x.shape[0], height, width)


def check(
    x: Tensor, norm_weight: Tensor | None, norm_bias: Tensor | None, norm_eps: float, *fields: Any
) -> None:
    checks.rank(OP, "x", x, "[B, N, C]")
    checks.is_float(OP, "x", x)
    layout = _layout(x, fields)
    if layout.grid is not None:
        check_tiles(OP, x, layout.grid)
    elif fields[8] == -1:
        _check_square(x, layout)
    elif layout.height < 0 or layout.width < 0 or layout.height * layout.width != x.shape[1]:
        checks.fail(
            OP,
            "size",
            f"is {layout.height}x{layout.width} for {x.shape[1]} tokens",
            "height * width equal to the tokens of x",
            "Drop the CLS token with x[:, 1:] or correct size.",
        )
    if layout.how.out is not None and layout.height * layout.width == 0:
        checks.fail(
            OP,
            "x",
            "has no tokens",
            f"at least one for kind {layout.how.kind!r}",
            "Skip images without tokens.",
        )
    layout.how.grid(layout.height, layout.width)
    channels = x.shape[2] if layout.how.norm_first else layout.how.channels(x.shape[2])
    check_norm(OP, x, channels, norm_weight, norm_bias, norm_eps)


def _check_square(x: Tensor, layout: _Layout) -> None:
    if layout.height * layout.width != x.shape[1]:
        checks.fail(
            OP,
            "x",
            f"has {x.shape[1]} tokens an image",
            "a square number of them, or size=(height, width)",
            "Pass size, or drop the CLS token with x[:, 1:].",
        )


def _shuffle(x: Tensor, how: Compression) -> Tensor:
    """Space to depth of x [B, h, w, C]: a fresh [B, rows * cols, factor^2 * C]."""
    r = how.factor
    batch, height, width, channels = x.shape
    rows, cols = how.grid(height, width)
    if how.pad:
        x = F.pad(x, (0, 0, 0, cols * r - width, 0, rows * r - height))
    blocks = x.reshape(batch, rows, r, cols, r, channels)
    token_axes = (3, 1) if how.transpose else (1, 3)
    channel_axes = (2, 4, 5) if how.order == "row_col_channel" else (5, 2, 4)
    moved = blocks.permute(0, *token_axes, *channel_axes)
    # One block in a row is a view of x otherwise.
    moved = moved.clone(memory_format=torch.contiguous_format)
    return moved.view(batch, rows * cols, r * r * channels)


def _pool(x: Tensor, how: Compression) -> Tensor:
    """Average, adaptive or bilinear pooling of x [B, h, w, C], which is float32 or float64."""
    batch, height, width, channels = x.shape
    rows, cols = how.grid(height, width)
    if how.kind == "average":
        return x.reshape(batch, rows, how.factor, cols, how.factor, channels).mean((2, 4))
    if batch == 0 or channels == 0:
        return x.new_empty(batch, rows, cols, channels)
    planes = x.permute(0, 3, 1, 2)
    if how.kind == "adaptive":
        pooled = F.adaptive_avg_pool2d(planes, (rows, cols))
    else:
        pooled = F.interpolate(planes, (rows, cols), mode="bilinear", align_corners=False)
    return pooled.permute(0, 2, 3, 1)


def reference(
    x: Tensor, norm_weight: Tensor | None, norm_bias: Tensor | None, norm_eps: float, *fields: Any
) -> Tensor:
    how, grid, images, height, width = _layout(x, fields)
    tokens = x if grid is None else stitch_wide(x, grid)
    if norm_weight is not None and how.norm_first:
        tokens = apply_norm(tokens.to(x.dtype), norm_weight, norm_bias, norm_eps)
    canvas = tokens.reshape(images, height, width, x.shape[2])
    if how.kind == "shuffle":
        tokens = _shuffle(canvas, how).to(x.dtype)
    else:
        if how.kind != "none":
            canvas = _pool(canvas if x.dtype == torch.float64 else canvas.float(), how)
        if how.transpose:
            canvas = canvas.transpose(1, 2)
        tokens = canvas.to(x.dtype).reshape(images, how.tokens(height, width), x.shape[2])
    if norm_weight is not None and not how.norm_first:
        tokens = apply_norm(tokens, norm_weight, norm_bias, norm_eps)
    elif how.kind == "none" and norm_weight is None and grid is None:
        tokens = tokens.clone(memory_format=torch.contiguous_format)
    return tokens.contiguous()


def fake(
    x: Tensor, norm_weight: Tensor | None, norm_bias: Tensor | None, norm_eps: float, *fields: Any
) -> Tensor:
    how, _, images, height, width = _layout(x, fields)
    return x.new_empty(images, how.tokens(height, width), how.channels(x.shape[2]))


def cost(
    x: Tensor, norm_weight: Tensor | None, norm_bias: Tensor | None, norm_eps: float, *fields: Any
) -> Cost:
    how, grid, images, height, width = _layout(x, fields)
    rows, cols = how.grid(height, width)
    channels = x.shape[2]
    read = height * width if grid is None else grid.patches_read
    flops = 0
    if how.kind == "bilinear":
        # Two rows and two columns an output, at most: a strong reduction skips the others.
        seen = min(height, 2 * rows) * min(width, 2 * cols)
        read = read * seen // (height * width)
        flops = 7 * rows * cols * channels
    elif how.kind in ("average", "adaptive"):
        flops = height * width * channels
    made = rows * cols * how.channels(channels)
    if norm_weight is not None:
        normed = height * width * channels if how.norm_first else made
        flops += normed * (4 if norm_bias is None else 6)
    if grid is not None and grid.rule != "crop":
        flops += 2 * (grid.patches_read - grid.canvas_len) * channels
    return Cost(
        images * read * channels * x.element_size() + nbytes(norm_weight, norm_bias),
        images * made * x.element_size(),
        images * flops,
    )


SPEC = OpSpec(
    name=OP,
    schema="(Tensor x, Tensor? norm_weight, Tensor? norm_bias, float norm_eps, str kind, "
    "int factor, str order, int out_height, int out_width, bool norm_first, bool transpose, "
    "bool pad, SymInt height, SymInt width, int rows, int cols, int tile, int overlap, str rule, "
    "int border) -> Tensor",
    check=check,
    reference=reference,
    fake=fake,
    cost=cost,
    samples=SAMPLES,
    kernels={
        "cpu": SUPPORTS_ALL,
        "cuda": cuda_plan.why_not,
        "triton": triton.supports("compress_tokens"),
    },
)


@SPEC.public
def compress_tokens(
    x: Tensor,
    how: Compression,
    norm: Norm | None = None,
    grid: TileGrid | None = None,
    size: tuple[int, int] | None = None,
) -> Tensor:
    """Compress each image's tokens, from its tiles or its canvas, and normalise them.

    x: [B, N, C] tokens row-major over `size` = (height, width), a square by default; or with
    `grid`, [B*T, t*t, C] tile layout, which is stitched first. bfloat16, float16 or float32, of any
    strides: x[:, 1:] drops a CLS token. norm: over the compressed channels, or over C before the
    compression with how.norm_first.
    Returns [B, how.tokens(height, width), how.channels(C)], row-major.
    Raises TypeError for dtypes, ValueError for sizes that do not fit.
    """
    if size is not None and grid is not None:
        checks.fail(
            OP,
            "size",
            "is given together with grid",
            "one of them, for a grid has its own size",
            "Leave size out.",
        )
    height, width = (-1, -1) if size is None else size
    policy = checks.instance(OP, "how", how, Compression).flat()
    layout = (0, 0, 0, 0, "crop", 0)
    if grid is not None:
        layout = checks.instance(OP, "grid", grid, TileGrid).flat()
    return SPEC(x, *norms.flat(OP, norm), *policy, height, width, *layout)
