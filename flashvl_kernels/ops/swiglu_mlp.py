"""The decoder's MLP in one op: RMSNorm, gate and up product, SwiGLU, down product, residual.

The block is that of Llama and Qwen2 (Shazeer, arXiv 2002.05202). At one row it is bound by reading
the three weight matrices; fused, the 2F wide intermediate never leaves the cache and nothing waits
between the passes. Rounding follows Hugging Face's Qwen2: after every module.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from flashvl_kernels import checks, triton
from flashvl_kernels.cuda import swiglu_mlp as cuda_plan
from flashvl_kernels.gradients import swiglu_mlp as gradients
from flashvl_kernels.norm import apply_norm, check_norm
from flashvl_kernels.packing import PackedWeight, check_operand, flat_weight, pack, project
from flashvl_kernels.panels import PANEL
from flashvl_kernels.spec import Call, Cost, Maker, OpSpec, Sample, call, nbytes


def check(
    x: Tensor,
    norm_weight: Tensor,
    norm_eps: float,
    gate_up_data: Tensor,
    gate_up_scale: Tensor | None,
    gate_up_format: str,
    gate_up_columns: int,
    down_data: Tensor,
    down_scale: Tensor | None,
    down_format: str,
    down_columns: int,
) -> None:
    op = "swiglu_mlp"
    checks.at_least_1d(op, "x", x)
    checks.is_float(op, "x", x)
    channels = x.shape[-1]
    check_norm("swiglu_mlp: norm", x, channels, norm_weight, None, norm_eps)
    gate_up = (gate_up_data, gate_up_scale, gate_up_format, gate_up_columns)
    check_operand(op, "w_gate_up", gate_up, x, channels)
    width = gate_up_data.shape[0]
    if width % 2:
        needs = "an even number: those of the gate, then as many of up"
        checks.fail(op, "w_gate_up", f"has {width} rows", needs, "Concatenate gate and up.")
    down = (down_data, down_scale, down_format, down_columns)
    check_operand(op, "w_down", down, x, width // 2)
    if down_data.shape[0] != channels:
        needs = f"{channels}, the channels of x"
        checks.fail(op, "w_down", f"has {down_data.shape[0]} rows", needs, "It must be [C, F].")


def reference(
    x: Tensor,
    norm_weight: Tensor,
    norm_eps: float,
    gate_up_data: Tensor,
    gate_up_scale: Tensor | None,
    gate_up_format: str,
    gate_up_columns: int,
    down_data: Tensor,
    down_scale: Tensor | None,
    down_format: str,
    down_columns: int,
) -> Tensor:
    n = apply_norm(x, norm_weight, None, norm_eps)
    gate_up = project(n, gate_up_data, gate_up_scale, gate_up_format, gate_up_columns)
    gate, up = gate_up.chunk(2, dim=-1)
    y = project(F.silu(gate) * up, down_data, down_scale, down_format, down_columns)
    return (x + y).contiguous()


def fake(x: Tensor, *_: object) -> Tensor:
    return x.new_empty(x.shape)


def cost(
    x: Tensor,
    norm_weight: Tensor,
    norm_eps: float,
    gate_up_data: Tensor,
    gate_up_scale: Tensor | None,
    gate_up_format: str,
    gate_up_columns: int,
    down_data: Tensor,
    down_scale: Tensor | None,
    down_format: str,
    down_columns: int,
) -> Cost:
    # Norm, gate and residual are a few FLOPs for each element beside 2C or 2F and not counted.
    read = nbytes(x, norm_weight, gate_up_data, gate_up_scale, down_data, down_scale)
    products = gate_up_data.shape[0] * gate_up_columns + down_data.shape[0] * down_columns
    return Cost(read, nbytes(x), 2 * x.shape[:-1].numel() * products)


def no_cpu_kernel(*args: Any) -> str | None:
    """The reason the CPU kernel cannot run these schema arguments; None when it can (and when
    asked without arguments, whether there is a kernel at all)."""
    if not args:
        return None
    gate_up_data, gate_up_format = args[3], args[5]
    width = gate_up_data.shape[0] // 2
    if gate_up_format.endswith("_panels") and width % PANEL:
        return (
            f"w_gate_up is in panels of {PANEL} rows and its gate of {width} ends inside one; "
            f"pack it in the layout 'rows'"
        )
    return None


def _weight(
    m: Maker, rows: int, columns: int, format: str = "bf16", layout: str = "rows"
) -> Tensor | PackedWeight:
    w = m.normal(rows, columns, scale=max(columns, 1) ** -0.5)
    return w if (format, layout) == ("bf16", "rows") else pack(w, format, layout)


def _mlp(
    m: Maker,
    x: Tensor,
    width: int,
    gate_up_format: str = "bf16",
    down_format: str = "bf16",
    layout: str = "rows",
) -> Call:
    channels = x.shape[-1]
    return call(
        x,
        m.normal(channels),
        _weight(m, 2 * width, channels, gate_up_format, layout),
        _weight(m, channels, width, down_format, layout),
    )


def _not_finite(m: Maker) -> Tensor:
    x = m.normal(4, 64)
    x[0, 3], x[1, 5], x[2, 7] = float("nan"), float("inf"), -float("inf")
    return x


def _hostile(name: str, error: str, make: Callable[[Maker], Call]) -> Sample:
    return Sample(name, make, "hostile", error=error)


def _in_panels(rows: int, format: str) -> Sample:
    """304 channels and a width of 112: odd numbers of panels, and more than one step."""
    return Sample(
        f"{rows} rows, panels, {format}",
        lambda m: _mlp(m, m.normal(rows, 304), 112, format, format, "panels"),
        "edge",
    )


SAMPLES = (
    Sample("one row", lambda m: _mlp(m, m.normal(1, 96), 160)),
    Sample("rows", lambda m: _mlp(m, m.normal(2, 7, 64), 96)),
    Sample("int8", lambda m: _mlp(m, m.normal(3, 72), 96, "int8", "int8")),
    Sample("int4", lambda m: _mlp(m, m.normal(1, 128), 256, "int4", "int4")),
    Sample("int4 and int8 mixed", lambda m: _mlp(m, m.normal(2, 128), 96, "int4", "int8")),
    Sample("odd sizes", lambda m: _mlp(m, m.normal(5, 33), 77), "edge"),
    Sample("odd sizes, int4", lambda m: _mlp(m, m.normal(3, 33), 77, "int4", "int4"), "edge"),
    # fp32 in several blocks of 256 rows for each thread, and in chunks of 128 columns.
    Sample("700 rows", lambda m: _mlp(m, m.normal(700, 40), 150), "edge"),
    Sample("37 rows, odd sizes", lambda m: _mlp(m, m.normal(37, 33), 77, "int8"), "edge"),
    *(_in_panels(rows, format) for rows in (3, 37) for format in ("bf16", "int8", "int4")),
    Sample(
        "a gate that ends inside a panel",
        lambda m: _mlp(m, m.normal(3, 48), 40, layout="panels"),
        "edge",
    ),
    Sample("width 1", lambda m: _mlp(m, m.normal(3, 1), 1), "edge"),
    Sample("one axis", lambda m: _mlp(m, m.normal(40), 24), "edge"),
    Sample("large values", lambda m: _mlp(m, m.normal(3, 64, scale=1e3), 48), "edge"),
    Sample("NaN and Inf rows", lambda m: _mlp(m, _not_finite(m), 48), "edge"),
    Sample("rows with a gap", lambda m: _mlp(m, m.strided(3, 5, 40), 24), "strided"),
    Sample(
        "transposed x and weights",
        lambda m: call(
            m.transposed(6, 48), m.normal(48), m.transposed(64, 48), m.transposed(48, 32)
        ),
        "strided",
    ),
    Sample(
        "CLS dropped, int8", lambda m: _mlp(m, m.normal(2, 5, 24)[:, 1:], 16, "int8"), "strided"
    ),
    Sample("no rows", lambda m: _mlp(m, m.normal(0, 16), 8), "zero"),
    Sample(
        "no channels",
        lambda m: call(m.normal(3, 0), m.normal(0), m.normal(8, 0), m.normal(0, 4)),
        "zero",
    ),
    Sample("no width", lambda m: _mlp(m, m.normal(3, 16), 0), "zero"),
    Sample("rows past 2^31", lambda m: _mlp(m, m.far(2, 64), 24), "far"),
    Sample("third row past 2^31", lambda m: _mlp(m, m.far(3, 64, stride=2**30), 24), "far"),
    _hostile("integers", "x has dtype int64", lambda m: _mlp(m, m.integers(0, 9, 2, 8), 8)),
    _hostile(
        "a scalar",
        "x is a scalar",
        lambda m: call(m.normal(), m.normal(1), m.normal(4, 1), m.normal(1, 2)),
    ),
    _hostile(
        "norm of another width",
        r"norm: weight has shape \[7\]; needs \[8\]",
        lambda m: call(m.normal(2, 8), m.normal(7), m.normal(12, 8), m.normal(8, 6)),
    ),
    _hostile(
        "eps zero",
        "eps is 0.0; needs a finite number above 0",
        lambda m: call(m.normal(2, 8), m.normal(8), m.normal(12, 8), m.normal(8, 6), 0.0),
    ),
    _hostile(
        "odd gate and up",
        "w_gate_up has 13 rows; needs an even number",
        lambda m: call(m.normal(2, 8), m.normal(8), m.normal(13, 8), m.normal(8, 6)),
    ),
    _hostile(
        "gate alone",
        "w_down has 12 columns; needs 6",
        lambda m: call(m.normal(2, 8), m.normal(8), m.normal(12, 8), m.normal(8, 12)),
    ),
    _hostile(
        "down to another width",
        "w_down has 9 rows; needs 8",
        lambda m: call(m.normal(2, 8), m.normal(8), m.normal(12, 8), m.normal(9, 6)),
    ),
    _hostile(
        "weight of another dtype",
        "w_down has dtype float64 but x has",
        lambda m: call(
            m.normal(2, 8), m.normal(8), m.normal(12, 8), m.normal(8, 6, dtype=torch.float64)
        ),
    ),
    Sample(
        "one row, 2B",
        lambda m: _mlp(m, m.normal(1, 1536), 8960),
        "bench",
        family="flash-vl, qwen2-vl",
    ),
    Sample(
        "prefill, 2B",
        lambda m: _mlp(m, m.normal(300, 1536), 8960),
        "bench",
        family="flash-vl, qwen2-vl",
    ),
    Sample(
        "one row, 2B, int8",
        lambda m: _mlp(m, m.normal(1, 1536), 8960, "int8", "int8"),
        "bench",
        family="flash-vl, qwen2-vl",
    ),
    Sample(
        "one row, 2B, int4",
        lambda m: _mlp(m, m.normal(1, 1536), 8960, "int4", "int4"),
        "bench",
        family="flash-vl, qwen2-vl",
    ),
    Sample("AIMv2 tile", lambda m: _mlp(m, m.normal(1024, 1536), 4096), "bench", family="flash-vl"),
    Sample(
        "one row, InternLM2.5-1.8B",
        lambda m: _mlp(m, m.normal(1, 2048), 8192),
        "bench",
        family="internvl",
    ),
    Sample(
        "one row, Qwen2-0.5B",
        lambda m: _mlp(m, m.normal(1, 896), 4864),
        "bench",
        family="llava-onevision",
    ),
)

SPEC = OpSpec(
    name="swiglu_mlp",
    schema="(Tensor x, Tensor norm_weight, float norm_eps,"
    " Tensor gate_up_data, Tensor? gate_up_scale, str gate_up_format, SymInt gate_up_columns,"
    " Tensor down_data, Tensor? down_scale, str down_format, SymInt down_columns) -> Tensor",
    check=check,
    reference=reference,
    fake=fake,
    cost=cost,
    samples=SAMPLES,
    backward=gradients.backward,
    kernels={
        "cpu": no_cpu_kernel,
        "cuda": cuda_plan.why_not,
        "triton": triton.supports("swiglu_mlp"),
    },
    keep=("gate_up_scale", "down_scale"),
)


@SPEC.public
def swiglu_mlp(
    x: Tensor,
    norm_weight: Tensor,
    w_gate_up: Tensor | PackedWeight,
    w_down: Tensor | PackedWeight,
    eps: float = 1e-6,
) -> Tensor:
    """x + w_down · (silu(gate) * up), where gate and up are the halves of w_gate_up · RMSNorm(x).

    x: [..., C] in bfloat16, float16 or float32. norm_weight: [C]. w_gate_up: [2F, C], the rows of
    the gate first. w_down: [C, F]. Weights are in the dtype of x or packed; packed to int8 or int4
    they get no gradient. Returns [..., C].
    Raises TypeError for dtypes, ValueError for shapes, devices and eps.
    """
    gate_up = flat_weight("swiglu_mlp", "w_gate_up", w_gate_up)
    return SPEC(x, norm_weight, eps, *gate_up, *flat_weight("swiglu_mlp", "w_down", w_down))
