"""The vision encoder's MLP in one op: norm, first product, GELU, second product, residual.

The block is that of ViT (Dosovitskiy et al., arXiv 2010.11929) with the GELU of Hendrycks and
Gimpel (arXiv 1606.08415), exact or by tanh. Bias and GELU ride on the first product, the residual
on the second. Rounding follows the unfused modules: after each of them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from flashvl_kernels import checks, triton
from flashvl_kernels.cuda import gelu_mlp as cuda_plan
from flashvl_kernels.norm import Norm, apply_norm, check_norm
from flashvl_kernels.packing import PackedWeight, check_operand, flat_weight, pack, project
from flashvl_kernels.spec import SUPPORTS_ALL, Call, Cost, Maker, OpSpec, Sample, call, nbytes


def check(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    norm_eps: float,
    w1_data: Tensor,
    w1_scale: Tensor | None,
    w1_format: str,
    w1_columns: int,
    b1: Tensor,
    w2_data: Tensor,
    w2_scale: Tensor | None,
    w2_format: str,
    w2_columns: int,
    b2: Tensor,
    approximate: str,
) -> None:
    op = "gelu_mlp"
    checks.at_least_1d(op, "x", x)
    checks.is_float(op, "x", x)
    channels = x.shape[-1]
    check_norm("gelu_mlp: norm", x, channels, norm_weight, norm_bias, norm_eps)
    check_operand(op, "w1", (w1_data, w1_scale, w1_format, w1_columns), x, channels)
    width = w1_data.shape[0]
    check_operand(op, "w2", (w2_data, w2_scale, w2_format, w2_columns), x, width)
    if w2_data.shape[0] != channels:
        needs = f"{channels}, the channels of x"
        checks.fail(op, "w2", f"has {w2_data.shape[0]} rows", needs, "It must be [C, F].")
    for argument, bias, rows in (("b1", b1, width), ("b2", b2, channels)):
        checks.shape(op, argument, bias, (rows,), "the rows of its weight")
        checks.same_dtype(op, argument, bias, x)
    if approximate not in ("none", "tanh"):
        checks.fail(op, "approximate", f"is {approximate!r}", "'none' or 'tanh'", "Choose one.")


def reference(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    norm_eps: float,
    w1_data: Tensor,
    w1_scale: Tensor | None,
    w1_format: str,
    w1_columns: int,
    b1: Tensor,
    w2_data: Tensor,
    w2_scale: Tensor | None,
    w2_format: str,
    w2_columns: int,
    b2: Tensor,
    approximate: str,
) -> Tensor:
    n = apply_norm(x, norm_weight, norm_bias, norm_eps)
    inner = project(n, w1_data, w1_scale, w1_format, w1_columns, b1)
    h = F.gelu(inner, approximate=approximate)
    return (x + project(h, w2_data, w2_scale, w2_format, w2_columns, b2)).contiguous()


def fake(x: Tensor, *_: object) -> Tensor:
    return x.new_empty(x.shape)


def cost(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    norm_eps: float,
    w1_data: Tensor,
    w1_scale: Tensor | None,
    w1_format: str,
    w1_columns: int,
    b1: Tensor,
    w2_data: Tensor,
    w2_scale: Tensor | None,
    w2_format: str,
    w2_columns: int,
    b2: Tensor,
    approximate: str,
) -> Cost:
    # Norm, GELU and residual are a few FLOPs for each element beside 2C or 2F and not counted.
    products = w1_data.shape[0] * w1_columns + w2_data.shape[0] * w2_columns
    weights = nbytes(w1_data, w1_scale, b1, w2_data, w2_scale, b2)
    read = nbytes(x, norm_weight, norm_bias) + weights
    return Cost(read, nbytes(x), 2 * x.shape[:-1].numel() * products)


def _weight(m: Maker, rows: int, columns: int, format: str, layout: str) -> Tensor | PackedWeight:
    w = m.normal(rows, columns, scale=max(columns, 1) ** -0.5)
    return w if (format, layout) == ("bf16", "rows") else pack(w, format, layout)


def _mlp(
    m: Maker,
    x: Tensor,
    width: int,
    approximate: str = "tanh",
    format: str = "bf16",
    layout: str = "rows",
) -> Call:
    c = x.shape[-1]
    return call(
        x,
        Norm(m.normal(c), m.normal(c), 1e-6),
        _weight(m, width, c, format, layout),
        m.normal(width),
        _weight(m, c, width, format, layout),
        m.normal(c),
        approximate,
    )


def _broken(m: Maker, *, x: Tensor | None = None, **changed: object) -> Call:
    """A sound call of 8 channels and 12 hidden ones, but for the arguments given."""
    names = ("x", "norm", "w1", "b1", "w2", "b2", "approximate")
    sound = dict(zip(names, _mlp(m, m.normal(2, 8), 12).args, strict=True))
    given = {} if x is None else {"x": x}
    return call(*(sound | given | changed).values())


def _not_finite(m: Maker) -> Tensor:
    x = m.normal(4, 64)
    x[0, 3], x[1, 5], x[2, 7] = float("nan"), float("inf"), -float("inf")
    return x


def _hostile(name: str, error: str, make: Callable[[Maker], Call]) -> Sample:
    return Sample(name, make, "hostile", error=error)


SAMPLES = (
    Sample("one row", lambda m: _mlp(m, m.normal(1, 72), 160)),
    Sample("rows", lambda m: _mlp(m, m.normal(2, 7, 64), 96)),
    Sample("exact gelu", lambda m: _mlp(m, m.normal(6, 48), 80, "none")),
    Sample(
        "RMSNorm",
        lambda m: call(
            m.normal(4, 48),
            Norm(m.normal(48), eps=1e-5),
            m.normal(64, 48, scale=0.15),
            m.normal(64),
            m.normal(48, 64, scale=0.12),
            m.normal(48),
        ),
    ),
    Sample("int8", lambda m: _mlp(m, m.normal(3, 72), 96, "tanh", "int8")),
    Sample("int4", lambda m: _mlp(m, m.normal(2, 128), 160, "none", "int4")),
    Sample("panels", lambda m: _mlp(m, m.normal(5, 80), 112, "tanh", "bf16", "panels")),
    Sample(
        "int8 and int4 panels",
        lambda m: call(
            m.normal(3, 144),
            Norm(m.normal(144), m.normal(144)),
            _weight(m, 176, 144, "int8", "panels"),
            m.normal(176),
            _weight(m, 144, 176, "int4", "panels"),
            m.normal(144),
        ),
    ),
    Sample("odd sizes", lambda m: _mlp(m, m.normal(5, 33), 77), "edge"),
    Sample("odd sizes, int4", lambda m: _mlp(m, m.normal(3, 33), 77, "tanh", "int4"), "edge"),
    Sample("37 rows, odd sizes", lambda m: _mlp(m, m.normal(37, 33), 77), "edge"),
    Sample(
        "37 rows, panels",
        lambda m: _mlp(m, m.normal(37, 304), 80, "none", layout="panels"),
        "edge",
    ),
    Sample("700 rows", lambda m: _mlp(m, m.normal(700, 40), 150), "edge"),
    Sample("width 1", lambda m: _mlp(m, m.normal(3, 1), 1, "none"), "edge"),
    Sample("one axis", lambda m: _mlp(m, m.normal(40), 24), "edge"),
    Sample("large values", lambda m: _mlp(m, m.normal(3, 64, scale=1e3), 48), "edge"),
    Sample("NaN and Inf rows", lambda m: _mlp(m, _not_finite(m), 48), "edge"),
    Sample("rows with a gap", lambda m: _mlp(m, m.strided(3, 5, 40), 24), "strided"),
    Sample(
        "transposed x and weights",
        lambda m: call(
            m.transposed(6, 48),
            Norm(m.normal(48), m.normal(48)),
            m.transposed(32, 48),
            m.normal(32),
            m.transposed(48, 32),
            m.normal(48),
        ),
        "strided",
    ),
    Sample("CLS dropped", lambda m: _mlp(m, m.normal(2, 5, 24)[:, 1:], 16, "none"), "strided"),
    Sample("no rows", lambda m: _mlp(m, m.normal(0, 16), 8), "zero"),
    Sample("no channels", lambda m: _mlp(m, m.normal(3, 0), 8), "zero"),
    Sample("no width", lambda m: _mlp(m, m.normal(3, 16), 0), "zero"),
    Sample("rows past 2^31", lambda m: _mlp(m, m.far(2, 64), 24), "far"),
    Sample("third row past 2^31", lambda m: _mlp(m, m.far(3, 64, stride=2**30), 24), "far"),
    _hostile("integers", "x has dtype int64", lambda m: _mlp(m, m.integers(0, 9, 2, 8), 8)),
    _hostile(
        "no norm",
        "norm is a NoneType; needs a Norm",
        lambda m: call(m.normal(2, 8), None, m.normal(6, 8), m.normal(6), m.normal(8, 6), None),
    ),
    _hostile("a scalar", "x is a scalar", lambda m: _broken(m, x=m.normal())),
    _hostile(
        "norm of another width",
        r"norm: weight has shape \[7\]; needs \[8\]",
        lambda m: _broken(m, norm=Norm(m.normal(7), m.normal(8))),
    ),
    _hostile(
        "w1 transposed",
        "w1 has 12 columns; needs 8",
        lambda m: _broken(m, w1=m.normal(8, 12)),
    ),
    _hostile(
        "w1 of one axis", r"w1 has shape \[8\]; needs 2 axes", lambda m: _broken(m, w1=m.normal(8))
    ),
    _hostile(
        "b1 of another width",
        r"b1 has shape \[8\]; needs \[12\]",
        lambda m: _broken(m, b1=m.normal(8)),
    ),
    _hostile(
        "w2 transposed",
        "w2 has 8 columns; needs 12",
        lambda m: _broken(m, w2=m.normal(12, 8)),
    ),
    _hostile(
        "w2 to another width",
        "w2 has 9 rows; needs 8",
        lambda m: _broken(m, w2=m.normal(9, 12)),
    ),
    _hostile(
        "b2 of another dtype",
        "b2 has dtype float64",
        lambda m: _broken(m, b2=m.normal(8, dtype=torch.float64)),
    ),
    _hostile(
        "unknown approximation",
        "approximate is 'erf'; needs 'none' or 'tanh'",
        lambda m: _broken(m, approximate="erf"),
    ),
    Sample(
        "SigLIP2 tile", lambda m: _mlp(m, m.normal(1024, 1152), 4304), "bench", family="flash-vl"
    ),
    Sample(
        "InternViT-300M tile",
        lambda m: _mlp(m, m.normal(1025, 1024), 4096, "none"),
        "bench",
        family="internvl",
    ),
    Sample(
        "SigLIP so400m/14-384 tile",
        lambda m: _mlp(m, m.normal(729, 1152), 4304),
        "bench",
        family="llava-onevision",
    ),
)

SPEC = OpSpec(
    name="gelu_mlp",
    schema="(Tensor x, Tensor norm_weight, Tensor? norm_bias, float norm_eps,"
    " Tensor w1_data, Tensor? w1_scale, str w1_format, SymInt w1_columns, Tensor b1,"
    " Tensor w2_data, Tensor? w2_scale, str w2_format, SymInt w2_columns, Tensor b2,"
    " str approximate) -> Tensor",
    check=check,
    reference=reference,
    fake=fake,
    cost=cost,
    samples=SAMPLES,
    kernels={
        "cpu": SUPPORTS_ALL,
        "cuda": cuda_plan.why_not,
        "triton": triton.supports("gelu_mlp"),
    },
    keep=("w1_scale", "w2_scale"),
)


@SPEC.public
def gelu_mlp(
    x: Tensor,
    norm: Norm,
    w1: Tensor | PackedWeight,
    b1: Tensor,
    w2: Tensor | PackedWeight,
    b2: Tensor,
    approximate: str = "none",
) -> Tensor:
    """x + w2 · gelu(w1 · norm(x) + b1) + b2.

    x: [..., C] in bfloat16, float16 or float32; norm and biases in the same dtype, weights too or
    packed (in integer formats they get no gradient). w1: [F, C]. b1: [F]. w2: [C, F]. b2: [C].
    approximate: "none" (erf) or "tanh". Returns [..., C].
    Raises TypeError for dtypes, ValueError for shapes, devices, eps and names.
    """
    first, second = flat_weight("gelu_mlp", "w1", w1), flat_weight("gelu_mlp", "w2", w2)
    normed = checks.instance("gelu_mlp", "norm", norm, Norm).flat()
    return SPEC(x, *normed, *first, b1, *second, b2, approximate)
