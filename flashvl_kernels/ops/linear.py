"""A matrix product with everything around it: norm before; bias, activation, residual after.

Fusing the prologue and the epilogue into the product saves their passes over memory; the idea is
that of cuBLASLt's and CUTLASS's epilogues. Weights may be packed (packing.py): at one row the
product runs at the speed of reading them, so int8 and int4 move a half and a quarter of the bytes.
Rounding follows the unfused modules: the normalised row, the product with its bias, the activation
and the sum with the residual are each rounded to the dtype.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from flashvl_kernels import checks, triton
from flashvl_kernels import norm as norms
from flashvl_kernels.cuda import linear as cuda_plan
from flashvl_kernels.gradients import linear as gradients
from flashvl_kernels.norm import Norm, apply_norm, check_norm
from flashvl_kernels.packing import PackedWeight, check_operand, flat_weight, pack, project
from flashvl_kernels.spec import SUPPORTS_ALL, Call, Cost, Maker, OpSpec, Sample, call, nbytes

ACTIVATIONS: dict[str | None, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
}


def check(
    x: Tensor,
    w_data: Tensor,
    w_scale: Tensor | None,
    w_format: str,
    w_columns: int,
    bias: Tensor | None,
    activation: str | None,
    residual: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    norm_eps: float,
) -> None:
    checks.at_least_1d("linear", "x", x)
    checks.is_float("linear", "x", x)
    channels = x.shape[-1]
    check_operand("linear", "w", (w_data, w_scale, w_format, w_columns), x, channels)
    if bias is not None:
        checks.shape("linear", "bias", bias, w_data.shape[:1], "the rows of w")
        checks.same_dtype("linear", "bias", bias, x)
    if activation is not None and activation not in ACTIVATIONS:
        known = ", ".join(map(repr, ACTIVATIONS))
        checks.fail("linear", "activation", f"is {activation!r}", f"None, {known}", "Choose one.")
    if residual is not None:
        result = (*x.shape[:-1], w_data.shape[0])
        checks.shape("linear", "residual", residual, result, "the shape of the result")
        checks.same_dtype("linear", "residual", residual, x)
    check_norm("linear: norm", x, channels, norm_weight, norm_bias, norm_eps)


def reference(
    x: Tensor,
    w_data: Tensor,
    w_scale: Tensor | None,
    w_format: str,
    w_columns: int,
    bias: Tensor | None,
    activation: str | None,
    residual: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    norm_eps: float,
) -> Tensor:
    if norm_weight is not None:
        x = apply_norm(x, norm_weight, norm_bias, norm_eps)
    y = project(x, w_data, w_scale, w_format, w_columns, bias)
    if activation is not None:
        y = ACTIVATIONS[activation](y)
    if residual is not None:
        y = y + residual
    return y.contiguous()


def fake(x: Tensor, w_data: Tensor, *_: object) -> Tensor:
    return x.new_empty((*x.shape[:-1], w_data.shape[0]))


def cost(
    x: Tensor,
    w_data: Tensor,
    w_scale: Tensor | None,
    w_format: str,
    w_columns: int,
    bias: Tensor | None,
    activation: str | None,
    residual: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    norm_eps: float,
) -> Cost:
    # Norm, epilogue and dequantisation are a few FLOPs for each element beside 2K and not counted.
    read = nbytes(x, w_data, w_scale, bias, residual, norm_weight, norm_bias)
    outputs = x.shape[:-1].numel() * w_data.shape[0]
    return Cost(read, outputs * x.element_size(), 2 * outputs * w_columns)


def _weight(
    m: Maker, rows: int, columns: int, format: str = "bf16", layout: str = "rows"
) -> Tensor | PackedWeight:
    w = m.normal(rows, columns, scale=columns**-0.5)
    return w if (format, layout) == ("bf16", "rows") else pack(w, format, layout)


def _everything(
    m: Maker, rows: int, k: int, n: int, activation: str, format: str, layout: str = "rows"
) -> Call:
    return call(
        m.normal(rows, k),
        _weight(m, n, k, format, layout),
        m.normal(n),
        activation=activation,
        residual=m.normal(rows, n),
        norm=Norm(m.normal(k), m.normal(k), 1e-6),
    )


def _not_finite(m: Maker) -> Tensor:
    x = m.normal(4, 64)
    x[0, 3], x[1, 5], x[2, 7] = float("nan"), float("inf"), -float("inf")
    return x


def _bench(
    name: str, rows: int, n: int, k: int, format: str = "bf16", family: str = "flash-vl"
) -> Sample:
    return Sample(
        name,
        lambda m: call(m.normal(rows, k), _weight(m, n, k, format)),
        "bench",
        family=family,
    )


def _hostile(name: str, error: str, make: Callable[[Maker], Call]) -> Sample:
    return Sample(name, make, "hostile", error=error)


def _many_not_finite(m: Maker) -> Call:
    x = m.normal(68, 64)
    x[:4] = _not_finite(m)
    w = m.normal(40, 64, scale=0.125)
    w[7, 9] = float("inf")
    return call(x, w, activation="silu")


def _blocks(format: str, layout: str) -> Sample:
    """37 rows are a block of AMX tiles and a rest; 300 columns a step of the first-level cache,
    another, and a rest; 48 outputs one and a half pairs of panels."""
    return Sample(
        f"37 rows, {format}, {layout}",
        lambda m: _everything(m, 37, 300, 48, "gelu", format, layout),
        "edge",
    )


def _long_sum(format: str) -> Sample:
    """Columns enough for a GPU to split the sum over them, unevenly, with everything after it."""
    return Sample(
        f"a long sum, {format}",
        lambda m: _everything(m, 3, 1100, 24, "silu", format),
        "edge",
    )


def _cut_short(name: str, rows: int) -> Sample:
    """One row too many is the first of a third batch, which is not there: with one stride between
    all rows a kernel may take it for row 0 and come to no harm."""
    return Sample(
        f"batches of {name} rows, cut short",
        lambda m: call(m.normal(2, rows + 1, 64)[:, :rows], _weight(m, 24, 64)),
        "strided",
    )


SAMPLES = (
    Sample("one row", lambda m: call(m.normal(1, 192), _weight(m, 128, 192))),
    Sample("bias", lambda m: call(m.normal(2, 7, 96), _weight(m, 80, 96), m.normal(80))),
    Sample("gelu", lambda m: call(m.normal(5, 64), _weight(m, 48, 64), activation="gelu")),
    Sample("silu", lambda m: call(m.normal(5, 64), _weight(m, 48, 64), activation="silu")),
    Sample(
        "LayerNorm, gelu_tanh, residual", lambda m: _everything(m, 9, 72, 96, "gelu_tanh", "bf16")
    ),
    Sample(
        "RMSNorm, bias",
        lambda m: call(
            m.normal(3, 96), _weight(m, 64, 96), m.normal(64), norm=Norm(m.normal(96), eps=1e-5)
        ),
    ),
    Sample("int8", lambda m: call(m.normal(3, 96), _weight(m, 40, 96, "int8"), m.normal(40))),
    Sample("int4, one row", lambda m: call(m.normal(1, 256), _weight(m, 40, 256, "int4"))),
    Sample("int8, everything", lambda m: _everything(m, 4, 72, 33, "gelu", "int8")),
    Sample("int4, everything", lambda m: _everything(m, 4, 200, 33, "silu", "int4")),
    Sample(
        "bf16 packed",
        lambda m: call(m.normal(2, 64), pack(m.normal(24, 64, scale=0.125), "bf16")),
    ),
    # fp32 in several blocks of 256 rows for each thread, and in chunks of 128 columns.
    Sample("NaN and Inf, 68 rows", _many_not_finite, "edge"),
    Sample("700 rows", lambda m: _everything(m, 700, 150, 70, "gelu_tanh", "bf16"), "edge"),
    # Rows and whole groups of 128 columns that the tile registers take at level amx: an odd and an
    # even number of groups, and one.
    Sample(
        "int8 panels, eight rows of three groups",
        lambda m: _everything(m, 8, 384, 48, "silu", "int8", "panels"),
    ),
    Sample(
        "int8 panels, three rows of one group",
        lambda m: call(m.normal(3, 128), _weight(m, 32, 128, "int8", "panels")),
    ),
    Sample(
        "int4 panels, five rows of four groups",
        lambda m: _everything(m, 5, 512, 48, "gelu", "int4", "panels"),
    ),
    Sample(
        "int4 panels, seven rows of five groups",
        lambda m: call(m.normal(7, 640), _weight(m, 16, 640, "int4", "panels")),
    ),
    Sample("odd sizes", lambda m: call(m.normal(5, 77), _weight(m, 13, 77), m.normal(13)), "edge"),
    Sample("one by one", lambda m: call(m.normal(1, 1), m.normal(1, 1), m.normal(1)), "edge"),
    Sample("one axis", lambda m: call(m.normal(130), _weight(m, 24, 130)), "edge"),
    Sample(
        "int4, odd columns", lambda m: call(m.normal(3, 131), _weight(m, 9, 131, "int4")), "edge"
    ),
    Sample("int8, one column", lambda m: call(m.normal(3, 1), _weight(m, 5, 1, "int8")), "edge"),
    Sample(
        "int4, a row of zeros and an outlier",
        lambda m: call(m.normal(3, 160), pack(_uneven(m, 6, 160), "int4")),
        "edge",
    ),
    Sample(
        "panels, few rows",
        lambda m: _everything(m, 3, 150, 48, "gelu_tanh", "bf16", "panels"),
        "edge",
    ),
    *(_blocks(format, at) for format in ("bf16", "int8", "int4") for at in ("rows", "panels")),
    Sample(
        # Two blocks of rows, chunks of columns, and more outputs than a group of sums holds.
        "many rows, columns and outputs",
        lambda m: call(m.normal(530, 2600), _weight(m, 603, 2600), m.normal(603)),
        "edge",
    ),
    # Rows of the last block are finished while the next one is multiplied, or before it.
    Sample(
        "two blocks of rows a thread",
        lambda m: call(m.normal(768, 1600), _weight(m, 80, 1600)),
        "edge",
    ),
    Sample(
        "saturated gelu",
        lambda m: call(m.normal(3, 32, scale=50.0), m.normal(16, 32), activation="gelu_tanh"),
        "edge",
    ),
    Sample("NaN and Inf rows", lambda m: call(_not_finite(m), _weight(m, 24, 64)), "edge"),
    Sample(
        "rows with a gap",
        lambda m: call(m.strided(3, 5, 40), _weight(m, 24, 40), residual=m.strided(3, 5, 24)),
        "strided",
    ),
    Sample(
        "transposed x and w",
        lambda m: call(m.transposed(6, 48), m.transposed(32, 48), m.normal(32)),
        "strided",
    ),
    Sample(
        "CLS dropped, transposed residual, norm",
        lambda m: call(
            m.normal(2, 5, 24)[:, 1:],
            _weight(m, 16, 24),
            activation="silu",
            residual=m.transposed(2, 4, 16),
            norm=Norm(m.normal(24)),
        ),
        "strided",
    ),
    Sample(
        "int8 rows of a wider x",
        lambda m: call(m.strided(3, 40), _weight(m, 24, 40, "int8")),
        "strided",
    ),
    _cut_short("few", 3),
    _cut_short("many", 9),
    *(_long_sum(format) for format in ("bf16", "int8", "int4")),
    Sample(
        "tiles of rows and of outputs, and a rest of both",
        lambda m: _everything(m, 150, 100, 140, "gelu", "bf16"),
        "edge",
    ),
    Sample(
        "more rows than a group of tiles",
        lambda m: call(m.normal(2100, 16), _weight(m, 70, 16), m.normal(70)),
        "edge",
    ),
    Sample("no rows", lambda m: call(m.normal(0, 16), m.normal(8, 16), m.normal(8)), "zero"),
    Sample("no outputs", lambda m: call(m.normal(3, 16), m.normal(0, 16)), "zero"),
    Sample("no channels", lambda m: call(m.normal(3, 0), m.normal(8, 0), m.normal(8)), "zero"),
    Sample("int4, no rows", lambda m: call(m.normal(0, 16), _weight(m, 8, 16, "int4")), "zero"),
    Sample("rows past 2^31", lambda m: call(m.far(2, 64), _weight(m, 24, 64)), "far"),
    Sample(
        "third row past 2^31",
        lambda m: call(m.far(3, 64, stride=2**30), _weight(m, 24, 64)),
        "far",
    ),
    Sample(
        "third weight row past 2^31",
        lambda m: call(m.normal(2, 64), m.far(3, 64, stride=2**30)),
        "far",
    ),
    Sample("weight rows past 2^31", lambda m: call(m.normal(2, 64), m.far(2, 64)), "far"),
    _hostile(
        "integers", "x has dtype int64", lambda m: call(m.integers(0, 9, 2, 8), m.normal(4, 8))
    ),
    _hostile(
        "a weight for the norm",
        "norm is a Tensor; needs a Norm",
        lambda m: call(m.normal(2, 8), m.normal(4, 8), norm=m.normal(8)),
    ),
    _hostile("a scalar", "x is a scalar", lambda m: call(m.normal(), m.normal(4, 1))),
    _hostile(
        "weight of another width",
        "w has 7 columns; needs 8",
        lambda m: call(m.normal(2, 8), m.normal(4, 7)),
    ),
    _hostile(
        "packed weight of another width",
        "w has 6 columns; needs 8",
        lambda m: call(m.normal(2, 8), _weight(m, 4, 6, "int4")),
    ),
    _hostile(
        "weight of three axes",
        r"w has shape \[1, 4, 8\]; needs 2 axes",
        lambda m: call(m.normal(2, 8), m.normal(1, 4, 8)),
    ),
    _hostile(
        "weight of another dtype",
        "w has dtype float64 but x has",
        lambda m: call(m.normal(2, 8), m.normal(4, 8, dtype=torch.float64)),
    ),
    _hostile(
        "integer weight, not packed",
        "w has dtype int64; needs bfloat16",
        lambda m: call(m.normal(2, 8), m.integers(0, 9, 4, 8)),
    ),
    _hostile(
        "a list for a weight",
        "w is a list; needs a torch.Tensor or a PackedWeight",
        lambda m: call(m.normal(2, 8), [[1.0] * 8]),
    ),
    _hostile(
        "bias too long",
        r"bias has shape \[5\]; needs \[4\]",
        lambda m: call(m.normal(2, 8), m.normal(4, 8), m.normal(5)),
    ),
    _hostile(
        "unknown activation",
        "activation is 'relu'; needs None, 'gelu', 'gelu_tanh', 'silu'",
        lambda m: call(m.normal(2, 8), m.normal(4, 8), activation="relu"),
    ),
    _hostile(
        "residual that would broadcast",
        r"residual has shape \[1, 4\]; needs \[2, 4\]",
        lambda m: call(m.normal(2, 8), m.normal(4, 8), residual=m.normal(1, 4)),
    ),
    _hostile(
        "norm of another width",
        r"norm: weight has shape \[7\]; needs \[8\]",
        lambda m: call(m.normal(2, 8), m.normal(4, 8), norm=Norm(m.normal(7))),
    ),
    _bench("decoder qkv, one row", 1, 2048, 1536, family="flash-vl, qwen2-vl"),
    _bench("decoder gate and up, one row", 1, 17920, 1536, family="flash-vl, qwen2-vl"),
    _bench(
        "decoder gate and up, one row, int8", 1, 17920, 1536, "int8", family="flash-vl, qwen2-vl"
    ),
    _bench(
        "decoder gate and up, one row, int4", 1, 17920, 1536, "int4", family="flash-vl, qwen2-vl"
    ),
    _bench("decoder output, prefill", 300, 1536, 1536, family="flash-vl, qwen2-vl"),
    _bench("SigLIP2 fc1", 1024, 4304, 1152),
    _bench("adapter, first layer", 256, 7168, 4608),
    _bench("InternViT-300M qkv", 1025, 3072, 1024, family="internvl"),
    _bench("InternVL2.5-2B projector, first layer", 256, 2048, 4096, family="internvl"),
    _bench("Qwen2-VL ViT qkv, 32x32 patches", 1024, 3840, 1280, family="qwen2-vl"),
    _bench("Qwen2-VL-2B merger, last layer", 256, 1536, 5120, family="qwen2-vl"),
    _bench("SigLIP tile to Qwen2-0.5B", 729, 896, 1152, family="llava-onevision"),
)


def _uneven(m: Maker, rows: int, columns: int) -> Tensor:
    w = m.normal(rows, columns)
    w[0], w[1, 3] = 0, 1e4
    return w


SPEC = OpSpec(
    name="linear",
    schema="(Tensor x, Tensor w_data, Tensor? w_scale, str w_format, SymInt w_columns,"
    " Tensor? bias, str? activation, Tensor? residual,"
    " Tensor? norm_weight, Tensor? norm_bias, float norm_eps) -> Tensor",
    check=check,
    reference=reference,
    fake=fake,
    cost=cost,
    samples=SAMPLES,
    backward=gradients.backward,
    kernels={
        "cpu": SUPPORTS_ALL,
        "cuda": cuda_plan.why_not,
        "triton": triton.supports("linear"),
    },
    keep=("w_scale",),
)


@SPEC.public
def linear(
    x: Tensor,
    w: Tensor | PackedWeight,
    bias: Tensor | None = None,
    activation: str | None = None,
    residual: Tensor | None = None,
    norm: Norm | None = None,
) -> Tensor:
    """activation(norm(x) @ w.T + bias) + residual.

    x: [..., K] in bfloat16, float16 or float32. w: [N, K] in the dtype of x, or a PackedWeight,
    which gets no gradient in its integer formats. bias: [N]. activation: None, "gelu" (erf),
    "gelu_tanh" or "silu". residual: [..., N]. norm: applied to the rows of x first.
    Returns [..., N]. Raises TypeError for dtypes, ValueError for shapes, devices and names.
    """
    weight = flat_weight("linear", "w", w)
    return SPEC(x, *weight, bias, activation, residual, *norms.flat("linear", norm))
