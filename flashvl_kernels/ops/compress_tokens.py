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
from flashvl_kernels.spec import SUPPORTS_ALL, Cost, Maker, OpSpec, Sample, call, nbytes
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


def _layer_norm(m: Maker, channels: int, eps: float = 1e-6) -> Norm:
    return Norm(m.normal(channels, scale=0.1, mean=1.0), m.normal(channels, scale=0.1), eps)


def _rms_norm(m: Maker, channels: int) -> Norm:
    return Norm(m.normal(channels, scale=0.1, mean=1.0))


def _not_finite(m: Maker) -> Tensor:
    x = m.normal(1, 16, 8)
    x[0, 3, 1], x[0, 8, 2], x[0, 15, 7] = float("nan"), float("inf"), -float("inf")
    return x


def _far_start(m: Maker) -> Tensor:
    """Rows whose first values lie far from the others: a guess of the mean by them is bad."""
    x = m.normal(2, 4, 1024)
    x[:, 0, :64] += 1000.0
    return x


_SHUFFLE = Compression()
_UNFOLD = Compression(order="channel_row_col", pad=True)
_MERGE = Compression(norm_first=True)
_ISS = TileGrid(2, 2, 8, 2, "mean")

_TYPICAL = (
    Sample(
        "shuffle and LayerNorm",
        lambda m: call(m.normal(2, 64, 24), _SHUFFLE, _layer_norm(m, 96, 1e-5)),
    ),
    Sample("Unfold order, 7 padded to 8", lambda m: call(m.normal(2, 49, 12), _UNFOLD)),
    Sample(
        "shuffle of a stitched canvas",
        lambda m: call(m.normal(8, 64, 16), _SHUFFLE, _layer_norm(m, 64), _ISS),
    ),
    Sample(
        "shuffle 3, not square",
        lambda m: call(m.normal(2, 54, 8), Compression(factor=3), size=(6, 9)),
    ),
    Sample(
        "norm first, 2x2 merge",
        lambda m: call(m.normal(1, 48, 16), _MERGE, _rms_norm(m, 16), size=(4, 12)),
    ),
    Sample(
        "average",
        lambda m: call(m.normal(2, 36, 16), Compression("average"), _rms_norm(m, 16)),
    ),
    Sample(
        "adaptive from a stitched canvas",
        lambda m: call(
            m.normal(4, 64, 16), Compression("adaptive", out=(6, 6)), _layer_norm(m, 16), _ISS
        ),
    ),
    Sample("bilinear", lambda m: call(m.normal(2, 49, 16), Compression("bilinear", out=(4, 5)))),
    Sample(
        "norm only, stitched",
        lambda m: call(m.normal(4, 64, 16), Compression("none"), _layer_norm(m, 16), _ISS),
    ),
)

_EDGE = (
    Sample("shuffle 4", lambda m: call(m.normal(1, 64, 5), Compression(factor=4)), "edge"),
    Sample("one block", lambda m: call(m.normal(1, 4, 3), _SHUFFLE), "edge"),
    Sample("shuffle 1", lambda m: call(m.normal(1, 9, 3), Compression(factor=1)), "edge"),
    Sample("nothing to do", lambda m: call(m.normal(2, 9, 3), Compression("none")), "edge"),
    Sample(
        "column by column",
        lambda m: call(m.normal(2, 24, 6), Compression(transpose=True), size=(4, 6)),
        "edge",
    ),
    Sample(
        "Unfold order, shuffle 3 of one token",
        lambda m: call(m.normal(2, 1, 7), Compression(factor=3, order="channel_row_col", pad=True)),
        "edge",
    ),
    Sample(
        "norm first, then padding",
        lambda m: call(
            m.normal(1, 25, 8), Compression(norm_first=True, pad=True), _layer_norm(m, 8)
        ),
        "edge",
    ),
    Sample(
        "bilinear up",
        lambda m: call(m.normal(1, 6, 5), Compression("bilinear", out=(5, 7)), size=(2, 3)),
        "edge",
    ),
    Sample(
        "adaptive, uneven bins, transposed",
        lambda m: call(
            m.normal(1, 35, 6), Compression("adaptive", out=(3, 4), transpose=True), size=(5, 7)
        ),
        "edge",
    ),
    Sample(
        "norm first on a blended canvas, then average",
        lambda m: call(
            m.normal(2, 16, 8),
            Compression("average", norm_first=True),
            _layer_norm(m, 8),
            TileGrid(1, 2, 4, 2, "linear"),
        ),
        "edge",
    ),
    Sample(
        "85 channels, LayerNorm",
        lambda m: call(m.normal(1, 16, 85), _SHUFFLE, _layer_norm(m, 340)),
        "edge",
    ),
    Sample(
        "85 channels, blended, RMSNorm",
        lambda m: call(
            m.normal(4, 16, 85), _SHUFFLE, _rms_norm(m, 340), TileGrid(2, 2, 4, 2, "linear")
        ),
        "edge",
    ),
    Sample(
        "17 channels, LayerNorm first, then average",
        lambda m: call(
            m.normal(1, 16, 17), Compression("average", norm_first=True), _layer_norm(m, 17)
        ),
        "edge",
    ),
    Sample(
        "blocks of 5x5, LayerNorm",
        lambda m: call(m.normal(2, 25, 9), Compression(factor=5), _layer_norm(m, 225)),
        "edge",
    ),
    Sample(
        "Unfold order, 37 channels, LayerNorm",
        lambda m: call(m.normal(1, 16, 37), _UNFOLD, _layer_norm(m, 148)),
        "edge",
    ),
    Sample(
        "channels whole vectors, Unfold order",
        lambda m: call(m.normal(2, 36, 40), _UNFOLD, _layer_norm(m, 160)),
        "edge",
    ),
    Sample(
        "Unfold order of normalised, blended tokens",
        lambda m: call(
            m.normal(4, 16, 19),
            Compression(order="channel_row_col", norm_first=True),
            _rms_norm(m, 19),
            TileGrid(2, 2, 4, 2, "mean"),
        ),
        "edge",
    ),
    Sample(
        "adaptive, bins of 9x5",
        lambda m: call(m.normal(1, 81, 85), Compression("adaptive", out=(1, 2))),
        "edge",
    ),
    Sample(
        "bilinear from a blended canvas",
        lambda m: call(
            m.normal(4, 36, 85),
            Compression("bilinear", out=(4, 7)),
            None,
            TileGrid(2, 2, 6, 3, "linear", 1),
        ),
        "edge",
    ),
    Sample(
        "NaN and Inf",
        lambda m: call(_not_finite(m), _SHUFFLE, _layer_norm(m, 32)),
        "edge",
    ),
    Sample(
        "mean far above the spread",
        lambda m: call(m.normal(1, 16, 24, mean=100.0), _SHUFFLE, _layer_norm(m, 96)),
        "edge",
    ),
    Sample(
        "first values far from the mean",
        lambda m: call(_far_start(m), _SHUFFLE, _layer_norm(m, 4096)),
        "edge",
    ),
    Sample(
        "large values, average",
        lambda m: call(m.normal(1, 16, 8, scale=1e4), Compression("average", 4)),
        "edge",
    ),
)

_LAYOUT = (
    Sample(
        "CLS dropped",
        lambda m: call(m.normal(3, 17, 8)[:, 1:], _SHUFFLE, _layer_norm(m, 32)),
        "strided",
    ),
    Sample(
        "tokens with a gap, tiles",
        lambda m: call(m.strided(4, 64, 8), Compression("average"), None, _ISS),
        "strided",
    ),
    Sample(
        "channels first in memory",
        lambda m: call(m.transposed(2, 36, 8), Compression("bilinear", out=(3, 3))),
        "strided",
    ),
    Sample(
        "channels first, norm only",
        lambda m: call(m.transposed(2, 9, 8), Compression("none"), _rms_norm(m, 8)),
        "edge",
    ),
    Sample("no images", lambda m: call(m.normal(0, 16, 8), _SHUFFLE), "zero"),
    Sample(
        "no images, bilinear",
        lambda m: call(m.normal(0, 16, 8), Compression("bilinear", out=(3, 3))),
        "zero",
    ),
    Sample("no tokens", lambda m: call(m.normal(2, 0, 8), _SHUFFLE), "zero"),
    Sample(
        "no channels",
        lambda m: call(m.normal(2, 16, 0), Compression("adaptive", out=(3, 3))),
        "zero",
    ),
    Sample("images past 2^31", lambda m: call(m.far(2, 16, 8), _SHUFFLE), "far"),
    Sample(
        "third image past 2^31",
        lambda m: call(m.far(3, 16, 8, stride=2**30), _SHUFFLE),
        "far",
    ),
    Sample(
        "third image past 2^31, average",
        lambda m: call(m.far(3, 16, 8, stride=2**30), Compression("average")),
        "far",
    ),
)

_HOSTILE = (
    Sample(
        "a word for the compression",
        lambda m: call(m.normal(1, 16, 8), "shuffle"),
        "hostile",
        error="how is a str; needs a Compression",
    ),
    Sample(
        "a weight for the norm",
        lambda m: call(m.normal(1, 16, 8), _SHUFFLE, m.normal(32)),
        "hostile",
        error="norm is a Tensor; needs a Norm",
    ),
    Sample(
        "a tuple for the grid",
        lambda m: call(m.normal(1, 16, 8), _SHUFFLE, grid=(1, 1, 4)),
        "hostile",
        error="grid is a tuple; needs a TileGrid",
    ),
    Sample(
        "not square",
        lambda m: call(m.normal(1, 17, 8), _SHUFFLE),
        "hostile",
        error="x has 17 tokens an image; needs a square number",
    ),
    Sample(
        "size of another image",
        lambda m: call(m.normal(1, 16, 8), _SHUFFLE, size=(4, 6)),
        "hostile",
        error="size is 4x6 for 16 tokens",
    ),
    Sample(
        "negative size",
        lambda m: call(m.normal(1, 16, 8), _SHUFFLE, size=(-4, -4)),
        "hostile",
        error="size is -4x-4",
    ),
    Sample(
        "does not divide",
        lambda m: call(m.normal(1, 25, 8), _SHUFFLE),
        "hostile",
        error="a grid of 5x5 tokens does not divide into blocks of 2x2: set pad=True",
    ),
    Sample(
        "size and grid",
        lambda m: call(m.normal(4, 64, 8), _SHUFFLE, None, _ISS, (14, 14)),
        "hostile",
        error="size is given together with grid",
    ),
    Sample(
        "tiles of another grid",
        lambda m: call(m.normal(3, 64, 8), _SHUFFLE, None, _ISS),
        "hostile",
        error="x has 3 tiles; needs a multiple of 4",
    ),
    Sample(
        "norm of C channels after the shuffle",
        lambda m: call(m.normal(1, 16, 8), _SHUFFLE, _layer_norm(m, 8)),
        "hostile",
        error=r"weight has shape \[8\]; needs \[32\]",
    ),
    Sample(
        "norm of another dtype",
        lambda m: call(m.normal(1, 16, 8), _MERGE, Norm(m.normal(8, dtype=torch.float64))),
        "hostile",
        error="weight has dtype float64",
    ),
    Sample(
        "pooling nothing",
        lambda m: call(m.normal(1, 0, 8), Compression("adaptive", out=(2, 2))),
        "hostile",
        error="x has no tokens",
    ),
    Sample(
        "one axis missing",
        lambda m: call(m.normal(16, 8), _SHUFFLE),
        "hostile",
        error=r"x has shape \[16, 8\]; needs 3 axes",
    ),
    Sample(
        "integers",
        lambda m: call(m.integers(0, 9, 1, 16, 8), _SHUFFLE),
        "hostile",
        error="x has dtype int64",
    ),
)

_BENCH = (
    Sample(
        "Static: SigLIP2, shuffle 2, LN",
        lambda m: call(m.normal(1, 1024, 1152), _SHUFFLE, _layer_norm(m, 4608)),
        "bench",
        family="flash-vl",
    ),
    Sample(
        "Dynamic: AIMv2 7 tiles, shuffle 2, LN",
        lambda m: call(m.normal(7, 1024, 1536), _SHUFFLE, _layer_norm(m, 6144)),
        "bench",
        family="flash-vl",
    ),
    Sample(
        "Dynamic-ISS: 2x2 stitched, pooled to 24x24, LN",
        lambda m: call(
            m.normal(4, 1024, 1536),
            Compression("adaptive", out=(24, 24)),
            _layer_norm(m, 1536),
            TileGrid(2, 2, 32, 4, "mean"),
        ),
        "bench",
        family="flash-vl",
    ),
    Sample(
        "InternViT 13 tiles, CLS dropped, shuffle 2, LN",
        lambda m: call(m.normal(13, 1025, 1024)[:, 1:], _SHUFFLE, _layer_norm(m, 4096, 1e-5)),
        "bench",
        family="internvl",
    ),
    Sample(
        "SigLIP 2x2 canvas, bilinear to 27x27",
        lambda m: call(
            m.normal(4, 729, 1152), Compression("bilinear", out=(27, 27)), None, TileGrid(2, 2, 27)
        ),
        "bench",
        family="llava-onevision",
    ),
    Sample(
        "64 MiB",
        lambda m: call(m.normal(28, 1024, 1152), _SHUFFLE, _layer_norm(m, 4608)),
        "bench",
        family="stream",
    ),
    Sample(
        "48x64 patches, norm first, 2x2 merge",
        lambda m: call(m.normal(1, 48 * 64, 1280), _MERGE, _layer_norm(m, 1280), size=(48, 64)),
        "bench",
        family="qwen2-vl",
    ),
    Sample(
        "SigLIP 27x27 padded to 28, Unfold order",
        lambda m: call(m.normal(5, 729, 1152), _UNFOLD),
        "bench",
        family="deepseek-vl2",
    ),
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
    samples=_TYPICAL + _EDGE + _LAYOUT + _HOSTILE + _BENCH,
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
