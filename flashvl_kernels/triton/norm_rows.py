"""Device functions: RMSNorm or LayerNorm of a tile in registers, for kernels that end or begin so.

The arithmetic and the roundings of norm.py: see triton/rms_norm.py and triton/layer_norm.py.
"""

from __future__ import annotations

import triton
import triton.language as tl

NONE, RMS, LAYER = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def inverse_root(squares, channels, eps):  # type: ignore[no-untyped-def]
    """1 / sqrt(squares / channels + eps), each step correctly rounded: what a GPU is quick at errs
    by two units, and for a whole row alike."""
    one = tl.full(squares.shape, 1.0, tl.float32)
    mean = tl.div_rn(squares, one * channels)
    return tl.div_rn(one, tl.sqrt_rn(mean + eps))


@triton.jit
def normalised(
    wide, scale, shift, inside, channels, eps, dtype, NORM: tl.constexpr, WHOLE: tl.constexpr
):  # type: ignore[no-untyped-def]
    """fp32 `wide` [parts, columns], 0 outside `inside`, normalised over `channels` and mapped.

    Over each row of the tile, or under WHOLE over the tile as one row. Not yet rounded to `dtype`.
    """
    if NORM == RMS:
        rstd = inverse_root(row_sum(wide * wide, WHOLE), channels, eps)
        return scale * (wide * rstd).to(dtype).to(tl.float32)
    else:
        deviation = tl.where(inside, wide - row_sum(wide, WHOLE) / channels, 0.0)
        deviation = tl.where(inside, deviation - row_sum(deviation, WHOLE) / channels, 0.0)
        rstd = inverse_root(row_sum(deviation * deviation, WHOLE), channels, eps)
        return deviation * rstd * scale + shift


@triton.jit
def row_sum(values, WHOLE: tl.constexpr):  # type: ignore[no-untyped-def]
    """The sum of each row [parts, 1], or of the whole tile."""
    if WHOLE:
        return tl.sum(tl.sum(values, 1), 0)
    else:
        return tl.sum(values, 1)[:, None]
