"""Sample calls of compress_tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from flashvl_kernels.compression import Compression
from flashvl_kernels.norm import Norm
from flashvl_kernels.spec import Maker, Sample, call
from flashvl_kernels.tiles import TileGrid


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
        "8 video frames of Qwen2-0.5B's width, bilinear 27 to 14",
        lambda m: call(m.normal(8, 729, 896), Compression("bilinear", out=(14, 14))),
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

SAMPLES = _TYPICAL + _EDGE + _LAYOUT + _HOSTILE + _BENCH
