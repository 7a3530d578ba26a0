"""SwiGLU over a packed last axis: the first half gates the second.

The gate is Shazeer's (arXiv 2002.05202). Keeping both halves in one row lets one matrix product
write them, and this op read them, in a single pass. Rounding follows Hugging Face's Qwen2: silu
is rounded to the dtype before it multiplies.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from flashvl_kernels import checks, triton
from flashvl_kernels.spec import SUPPORTS_ALL, Cost, Maker, OpSpec, Sample, call, nbytes

FLOPS_PER_OUTPUT = 5  # exp, add, divide, multiply by the gate, multiply by up


def check(gate_up: Tensor) -> None:
    checks.at_least_1d("swiglu", "gate_up", gate_up)
    checks.is_float("swiglu", "gate_up", gate_up)
    if gate_up.shape[-1] % 2:
        checks.fail(
            "swiglu",
            "gate_up",
            f"has a last axis of {gate_up.shape[-1]}",
            "an even one: gates, then as many values",
            "Concatenate both along the last axis.",
        )


def reference(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return (F.silu(gate) * up).contiguous()


def fake(gate_up: Tensor) -> Tensor:
    return gate_up.new_empty((*gate_up.shape[:-1], gate_up.shape[-1] // 2))


def cost(gate_up: Tensor) -> Cost:
    return Cost(nbytes(gate_up), nbytes(gate_up) // 2, FLOPS_PER_OUTPUT * gate_up.numel() // 2)


def _extremes(m: Maker) -> Tensor:
    x = m.normal(3, 16)
    x[0, :4] = x.new_tensor([90.0, -90.0, 3e4, -3e4])
    x[1, 0], x[1, 1], x[1, 10], x[1, 11] = float("nan"), float("inf"), -float("inf"), float("nan")
    x[2, 0] = -float("inf")  # silu(-Inf) is -Inf * 0: NaN
    return x


SAMPLES = (
    Sample("one decoder row", lambda m: call(m.normal(1, 2 * 8960))),
    Sample("rows", lambda m: call(m.normal(2, 7, 192))),
    Sample("odd half", lambda m: call(m.normal(5, 2 * 77)), "edge"),
    Sample("width 2", lambda m: call(m.normal(3, 2)), "edge"),
    Sample("one axis", lambda m: call(m.normal(130)), "edge"),
    Sample("large values", lambda m: call(m.normal(3, 96, scale=30.0)), "edge"),
    Sample("NaN, Inf and saturation", lambda m: call(_extremes(m)), "edge"),
    Sample("rows with a gap", lambda m: call(m.strided(3, 5, 40)), "strided"),
    Sample("transposed", lambda m: call(m.transposed(6, 48)), "strided"),
    Sample("no rows", lambda m: call(m.normal(0, 16)), "zero"),
    Sample("no channels", lambda m: call(m.normal(3, 0)), "zero"),
    Sample("rows past 2^31", lambda m: call(m.far(2, 64)), "far"),
    Sample("third row past 2^31", lambda m: call(m.far(3, 64, stride=2**30)), "far"),
    Sample(
        "integers",
        lambda m: call(m.integers(0, 9, 2, 8)),
        "hostile",
        error="gate_up has dtype int64",
    ),
    Sample("a scalar", lambda m: call(m.normal()), "hostile", error="gate_up is a scalar"),
    Sample(
        "odd last axis",
        lambda m: call(m.normal(2, 7)),
        "hostile",
        error="gate_up has a last axis of 7; needs an even one",
    ),
    Sample(
        "decoder prefill",
        lambda m: call(m.normal(300, 2 * 8960)),
        "bench",
        family="flash-vl, qwen2-vl",
    ),
    Sample(
        "64 MiB",
        lambda m: call(m.normal(2**24 // 8960, 2 * 8960)),
        "bench",
        family="stream",
    ),
    Sample("AIMv2 tile", lambda m: call(m.normal(1024, 2 * 4096)), "bench", family="flash-vl"),
    Sample(
        "InternLM2.5-1.8B prefill of 300",
        lambda m: call(m.normal(300, 2 * 8192)),
        "bench",
        family="internvl",
    ),
    Sample(
        "Qwen2-0.5B prefill of 800",
        lambda m: call(m.normal(800, 2 * 4864)),
        "bench",
        family="llava-onevision",
    ),
)

SPEC = OpSpec(
    name="swiglu",
    schema="(Tensor gate_up) -> Tensor",
    check=check,
    reference=reference,
    fake=fake,
    cost=cost,
    samples=SAMPLES,
    kernels={"cpu": SUPPORTS_ALL, "cuda": SUPPORTS_ALL, "triton": triton.supports("swiglu")},
)


@SPEC.public
def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up, where a row of `gate_up` holds its gates, then its values.

    gate_up: [..., 2F] in bfloat16, float16 or float32. Returns [..., F].
    Raises TypeError for other dtypes, ValueError for a scalar or an odd last axis.
    """
    return SPEC(gate_up)
