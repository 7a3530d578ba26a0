"""RMSNorm of each row, after an optional residual add, in one pass over memory.

The idea is Zhang and Sennrich's (arXiv 1910.07467); adding the residual in the same pass saves
one read and one write of the hidden state a layer. Rounding follows Hugging Face's Qwen2: the sum
is rounded to the dtype, the normalised row is rounded before the weight multiplies it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flashvl_kernels import checks, triton
from flashvl_kernels.gradients import norms as gradients
from flashvl_kernels.norm import apply_norm, check_norm
from flashvl_kernels.spec import SUPPORTS_ALL, Cost, Maker, OpSpec, Sample, call, nbytes


def check(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None) -> None:
    checks.at_least_1d("rms_norm", "x", x)
    checks.is_float("rms_norm", "x", x)
    check_norm("rms_norm", x, x.shape[-1], weight, None, eps)
    if residual is not None:
        checks.shape("rms_norm", "residual", residual, x.shape, "the shape of x")
        checks.same_dtype("rms_norm", "residual", residual, x)


def reference(
    x: Tensor, weight: Tensor, eps: float, residual: Tensor | None
) -> tuple[Tensor, Tensor]:
    if residual is None:
        return apply_norm(x, weight, None, eps).contiguous(), x.new_empty(0)
    total = (x + residual).contiguous()
    return apply_norm(total, weight, None, eps), total


def fake(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(0 if residual is None else x.shape)


def cost(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None) -> Cost:
    written = nbytes(x) * (1 if residual is None else 2)
    return Cost(nbytes(x, weight, residual), written, 4 * x.numel() + nbytes(residual) // 2)


def _not_finite(m: Maker) -> Tensor:
    x = m.normal(4, 64)
    x[0, 3], x[1, 5], x[2, 7] = float("nan"), float("inf"), -float("inf")
    return x


SAMPLES = (
    Sample("one decoder row", lambda m: call(m.normal(1, 1536), m.normal(1536), 1e-6)),
    Sample(
        "residual",
        lambda m: call(m.normal(2, 9, 192), m.normal(192), 1e-6, m.normal(2, 9, 192)),
    ),
    Sample("odd width", lambda m: call(m.normal(5, 77), m.normal(77), 1e-5), "edge"),
    Sample("width 1", lambda m: call(m.normal(3, 1), m.normal(1)), "edge"),
    Sample("one axis", lambda m: call(m.normal(130), m.normal(130)), "edge"),
    Sample("large values", lambda m: call(m.normal(3, 96, scale=1e3), m.normal(96)), "edge"),
    Sample("tiny values", lambda m: call(m.normal(3, 96, scale=1e-4), m.normal(96)), "edge"),
    Sample("a row of zeros", lambda m: call(m.normal(2, 32) * 0, m.normal(32)), "edge"),
    Sample("NaN and Inf rows", lambda m: call(_not_finite(m), m.normal(64)), "edge"),
    Sample("rows with a gap", lambda m: call(m.strided(3, 5, 40), m.normal(40)), "strided"),
    Sample(
        "transposed, strided residual",
        lambda m: call(m.transposed(6, 48), m.normal(48), 1e-6, m.strided(6, 48)),
        "strided",
    ),
    Sample("CLS dropped", lambda m: call(m.normal(2, 5, 24)[:, 1:], m.normal(24)), "strided"),
    Sample("no rows", lambda m: call(m.normal(0, 16), m.normal(16)), "zero"),
    Sample("no channels", lambda m: call(m.normal(3, 0), m.normal(0)), "zero"),
    Sample("rows past 2^31", lambda m: call(m.far(2, 64), m.normal(64)), "far"),
    Sample("third row past 2^31", lambda m: call(m.far(3, 64, stride=2**30), m.normal(64)), "far"),
    Sample(
        "integers",
        lambda m: call(m.integers(0, 9, 2, 8), m.normal(8)),
        "hostile",
        error="x has dtype int64",
    ),
    Sample(
        "a scalar",
        lambda m: call(m.normal(), m.normal(1)),
        "hostile",
        error="x is a scalar",
    ),
    Sample(
        "weight too short",
        lambda m: call(m.normal(2, 8), m.normal(7)),
        "hostile",
        error=r"weight has shape \[7\]; needs \[8\]",
    ),
    Sample(
        "weight of another dtype",
        lambda m: call(m.normal(2, 8), m.normal(8, dtype=torch.float64)),
        "hostile",
        error="weight has dtype float64",
    ),
    Sample(
        "residual of another shape",
        lambda m: call(m.normal(2, 8), m.normal(8), 1e-6, m.normal(1, 8)),
        "hostile",
        error=r"residual has shape \[1, 8\]",
    ),
    Sample(
        "eps zero",
        lambda m: call(m.normal(2, 8), m.normal(8), 0.0),
        "hostile",
        error="eps is 0.0; needs a finite number above 0",
    ),
    Sample(
        "decoder prefill",
        lambda m: call(m.normal(300, 1536), m.normal(1536), 1e-6, m.normal(300, 1536)),
        "bench",
        family="flash-vl, qwen2-vl",
    ),
    Sample(
        "64 MiB",
        lambda m: call(m.normal(2**25 // 1536, 1536), m.normal(1536)),
        "bench",
        family="stream",
    ),
    Sample(
        "InternViT-6B tile",
        lambda m: call(m.normal(1025, 3200), m.normal(3200)),
        "bench",
        family="internvl",
    ),
    Sample(
        "InternLM2.5-1.8B prefill of 300",
        lambda m: call(m.normal(300, 2048), m.normal(2048), 1e-5, m.normal(300, 2048)),
        "bench",
        family="internvl",
    ),
    Sample(
        "Qwen2-0.5B prefill of 800",
        lambda m: call(m.normal(800, 896), m.normal(896), 1e-6, m.normal(800, 896)),
        "bench",
        family="llava-onevision",
    ),
)

SPEC = OpSpec(
    name="rms_norm",
    schema="(Tensor x, Tensor weight, float eps, Tensor? residual) -> (Tensor, Tensor)",
    check=check,
    reference=reference,
    fake=fake,
    cost=cost,
    samples=SAMPLES,
    backward=gradients.rms_norm,
    kernels={"cpu": SUPPORTS_ALL, "cuda": SUPPORTS_ALL, "triton": triton.supports("rms_norm")},
)


@SPEC.public
def rms_norm(
    x: Tensor, weight: Tensor, eps: float = 1e-6, residual: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Add `residual`, then divide each row by its root mean square and scale it.

    x: [..., C] in bfloat16, float16 or float32. weight: [C], same dtype. eps: added to the mean
    square. residual: [..., C] like x, or None.
    Returns (y, new_residual): y [..., C], and x + residual (x itself without a residual).
    Raises TypeError for dtypes, ValueError for shapes, devices and eps.
    """
    y, total = SPEC(x, weight, eps, residual)
    return y, x if residual is None else total
