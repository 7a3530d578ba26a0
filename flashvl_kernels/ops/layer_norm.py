"""LayerNorm of each row, after an optional residual add, in one pass over memory.

The idea is Ba, Kiros and Hinton's (arXiv 1607.06450); adding the residual in the same pass saves
one read and one write of the hidden state a layer. Rounding follows `torch.nn.LayerNorm`: the sum
is rounded to the dtype; mean, variance and the affine map are computed in fp32 and rounded once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flashvl_kernels import checks, triton
from flashvl_kernels.gradients import norms as gradients
from flashvl_kernels.norm import apply_norm, check_norm
from flashvl_kernels.spec import SUPPORTS_ALL, Cost, Maker, OpSpec, Sample, call, nbytes


def check(x: Tensor, weight: Tensor, bias: Tensor, eps: float, residual: Tensor | None) -> None:
    checks.at_least_1d("layer_norm", "x", x)
    checks.is_float("layer_norm", "x", x)
    check_norm("layer_norm", x, x.shape[-1], weight, bias, eps)
    if residual is not None:
        checks.shape("layer_norm", "residual", residual, x.shape, "the shape of x")
        checks.same_dtype("layer_norm", "residual", residual, x)


def reference(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, residual: Tensor | None
) -> tuple[Tensor, Tensor]:
    if residual is None:
        return apply_norm(x, weight, bias, eps).contiguous(), x.new_empty(0)
    total = (x + residual).contiguous()
    return apply_norm(total, weight, bias, eps), total


def fake(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, residual: Tensor | None
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(0 if residual is None else x.shape)


def cost(x: Tensor, weight: Tensor, bias: Tensor, eps: float, residual: Tensor | None) -> Cost:
    written = nbytes(x) * (1 if residual is None else 2)
    added = 0 if residual is None else residual.numel()
    # An element is summed (1), its deviation squared and summed (3), scaled (2), mapped (2).
    return Cost(nbytes(x, weight, bias, residual), written, 8 * x.numel() + added)


def _not_finite(m: Maker) -> Tensor:
    x = m.normal(4, 64)
    x[0, 3], x[1, 5], x[2, 7] = float("nan"), float("inf"), -float("inf")
    return x


SAMPLES = (
    Sample(
        "one row",
        lambda m: call(m.normal(1, 1152), m.normal(1152), m.normal(1152), 1e-6),
    ),
    Sample(
        "residual",
        lambda m: call(
            m.normal(2, 9, 192), m.normal(192), m.normal(192), 1e-6, m.normal(2, 9, 192)
        ),
    ),
    Sample("odd width", lambda m: call(m.normal(5, 77), m.normal(77), m.normal(77), 1e-5), "edge"),
    Sample("width 1", lambda m: call(m.normal(3, 1), m.normal(1), m.normal(1)), "edge"),
    Sample("one axis", lambda m: call(m.normal(130), m.normal(130), m.normal(130)), "edge"),
    Sample(
        "mean far above the spread",
        lambda m: call(m.normal(3, 96, mean=100.0), m.normal(96), m.normal(96)),
        "edge",
    ),
    Sample(
        "large values",
        lambda m: call(m.normal(3, 96, scale=1e3), m.normal(96), m.normal(96)),
        "edge",
    ),
    Sample(
        "tiny values",
        lambda m: call(m.normal(3, 96, scale=1e-4), m.normal(96), m.normal(96)),
        "edge",
    ),
    Sample(
        "a constant row",
        lambda m: call(m.normal(2, 32) * 0 + 3, m.normal(32), m.normal(32)),
        "edge",
    ),
    Sample(
        "NaN and Inf rows",
        lambda m: call(_not_finite(m), m.normal(64), m.normal(64)),
        "edge",
    ),
    Sample(
        "rows with a gap",
        lambda m: call(m.strided(3, 5, 40), m.normal(40), m.normal(40)),
        "strided",
    ),
    Sample(
        "transposed, strided residual",
        lambda m: call(m.transposed(6, 48), m.normal(48), m.normal(48), 1e-6, m.strided(6, 48)),
        "strided",
    ),
    Sample(
        "CLS dropped",
        lambda m: call(m.normal(2, 5, 24)[:, 1:], m.normal(24), m.normal(24)),
        "strided",
    ),
    Sample("no rows", lambda m: call(m.normal(0, 16), m.normal(16), m.normal(16)), "zero"),
    Sample("no channels", lambda m: call(m.normal(3, 0), m.normal(0), m.normal(0)), "zero"),
    Sample("rows past 2^31", lambda m: call(m.far(2, 64), m.normal(64), m.normal(64)), "far"),
    Sample(
        "third row past 2^31",
        lambda m: call(m.far(3, 64, stride=2**30), m.normal(64), m.normal(64)),
        "far",
    ),
    Sample(
        "integers",
        lambda m: call(m.integers(0, 9, 2, 8), m.normal(8), m.normal(8)),
        "hostile",
        error="x has dtype int64",
    ),
    Sample(
        "a scalar",
        lambda m: call(m.normal(), m.normal(1), m.normal(1)),
        "hostile",
        error="x is a scalar",
    ),
    Sample(
        "weight too short",
        lambda m: call(m.normal(2, 8), m.normal(7), m.normal(8)),
        "hostile",
        error=r"weight has shape \[7\]; needs \[8\]",
    ),
    Sample(
        "bias too long",
        lambda m: call(m.normal(2, 8), m.normal(8), m.normal(9)),
        "hostile",
        error=r"bias has shape \[9\]; needs \[8\]",
    ),
    Sample(
        "bias of another dtype",
        lambda m: call(m.normal(2, 8), m.normal(8), m.normal(8, dtype=torch.float64)),
        "hostile",
        error="bias has dtype float64",
    ),
    Sample(
        "residual of another shape",
        lambda m: call(m.normal(2, 8), m.normal(8), m.normal(8), 1e-6, m.normal(1, 8)),
        "hostile",
        error=r"residual has shape \[1, 8\]",
    ),
    Sample(
        "eps below zero",
        lambda m: call(m.normal(2, 8), m.normal(8), m.normal(8), -1e-6),
        "hostile",
        error="eps is -1e-06; needs a finite number above 0",
    ),
    Sample(
        "SigLIP2 tile",
        lambda m: call(
            m.normal(1024, 1152), m.normal(1152), m.normal(1152), 1e-6, m.normal(1024, 1152)
        ),
        "bench",
        family="flash-vl",
    ),
    Sample(
        "64 MiB",
        lambda m: call(m.normal(2**25 // 1152, 1152), m.normal(1152), m.normal(1152)),
        "bench",
        family="stream",
    ),
    Sample(
        "InternViT-300M tile",
        lambda m: call(m.normal(1025, 1024), m.normal(1024), m.normal(1024), 1e-6),
        "bench",
        family="internvl",
    ),
    Sample(
        "Qwen2-VL ViT, 32x32 patches",
        lambda m: call(
            m.normal(1024, 1280), m.normal(1280), m.normal(1280), 1e-6, m.normal(1024, 1280)
        ),
        "bench",
        family="qwen2-vl",
    ),
    Sample(
        "SigLIP so400m/14-384 tile",
        lambda m: call(
            m.normal(729, 1152), m.normal(1152), m.normal(1152), 1e-6, m.normal(729, 1152)
        ),
        "bench",
        family="llava-onevision",
    ),
)

SPEC = OpSpec(
    name="layer_norm",
    schema="(Tensor x, Tensor weight, Tensor bias, float eps, Tensor? residual)"
    " -> (Tensor, Tensor)",
    check=check,
    reference=reference,
    fake=fake,
    cost=cost,
    samples=SAMPLES,
    backward=gradients.layer_norm,
    kernels={"cpu": SUPPORTS_ALL, "cuda": SUPPORTS_ALL, "triton": triton.supports("layer_norm")},
)


@SPEC.public
def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-6, residual: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Add `residual`, then shift and scale each row to mean 0 and variance 1, then map it.

    x: [..., C] in bfloat16, float16 or float32. weight, bias: [C], same dtype. eps: added to the
    variance. residual: [..., C] like x, or None.
    Returns (y, new_residual): y [..., C], and x + residual (x itself without a residual).
    Raises TypeError for dtypes, ValueError for shapes, devices and eps.
    """
    y, total = SPEC(x, weight, bias, eps, residual)
    return y, x if residual is None else total
