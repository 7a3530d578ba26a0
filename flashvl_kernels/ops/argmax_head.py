"""The last step of a decoder: final norm, vocabulary projection, and the best k tokens.

Reading the vocabulary matrix is nearly all the work (467 MB for Flash-VL 2B in bf16); a kernel
keeps the best of the rows it has read and never writes logits. Logits are rounded to the dtype
before they are compared, as Hugging Face's greedy decoding does, so equal ones are common in bf16;
the lowest index wins, as in `torch.argmax`. NaN counts as the largest, as in PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from flashvl_kernels import checks, triton
from flashvl_kernels.cuda import argmax_head as cuda_plan
from flashvl_kernels.norm import apply_norm, check_norm
from flashvl_kernels.packing import PackedWeight, check_operand, flat_weight, pack, project
from flashvl_kernels.spec import SUPPORTS_ALL, Call, Cost, Maker, OpSpec, Sample, call, nbytes

INDEX_BYTES = 8


def check(
    x: Tensor,
    norm_weight: Tensor,
    norm_eps: float,
    w_data: Tensor,
    w_scale: Tensor | None,
    w_format: str,
    w_columns: int,
    k: int,
) -> None:
    op = "argmax_head"
    checks.is_float(op, "x", x)
    checks.rank(op, "x", x, "[B, C]")
    channels = x.shape[-1]
    check_norm("argmax_head: norm", x, channels, norm_weight, None, norm_eps)
    check_operand(op, "w_vocab", (w_data, w_scale, w_format, w_columns), x, channels)
    words = w_data.shape[0]
    if not 1 <= k <= words:
        needs = f"1 to {words}, the rows of w_vocab"
        checks.fail(op, "k", f"is {k}", needs, "Ask for fewer tokens.")


def reference(
    x: Tensor,
    norm_weight: Tensor,
    norm_eps: float,
    w_data: Tensor,
    w_scale: Tensor | None,
    w_format: str,
    w_columns: int,
    k: int,
) -> tuple[Tensor, Tensor]:
    n = apply_norm(x, norm_weight, None, norm_eps)
    logits = project(n, w_data, w_scale, w_format, w_columns)
    if k == 1:
        # max gives the first of equal values, as argmax does, in a quarter of argmax's time.
        values, indices = logits.max(dim=-1, keepdim=True)
        return values, indices
    # topk promises no order among equal values; a stable sort does (16 ms for 151936 logits).
    values, indices = logits.sort(dim=-1, descending=True, stable=True)
    keep = torch.contiguous_format
    return values[:, :k].clone(memory_format=keep), indices[:, :k].clone(memory_format=keep)


def fake(
    x: Tensor,
    norm_weight: Tensor,
    norm_eps: float,
    w_data: Tensor,
    w_scale: Tensor | None,
    w_format: str,
    w_columns: int,
    k: int,
) -> tuple[Tensor, Tensor]:
    return x.new_empty((x.shape[0], k)), x.new_empty((x.shape[0], k), dtype=torch.int64)


def cost(
    x: Tensor,
    norm_weight: Tensor,
    norm_eps: float,
    w_data: Tensor,
    w_scale: Tensor | None,
    w_format: str,
    w_columns: int,
    k: int,
) -> Cost:
    # The norm and the comparisons are a few FLOPs for each element beside 2C and not counted.
    rows = x.shape[0]
    written = rows * k * (x.element_size() + INDEX_BYTES)
    read = nbytes(x, norm_weight, w_data, w_scale)
    return Cost(read, written, 2 * rows * w_data.shape[0] * w_columns)


def _apart(m: Maker, rows: int, channels: int, words: int, k: int = 1) -> tuple[Tensor, Tensor]:
    """x and a vocabulary whose best k + 1 logits lie far apart, so that no rounding swaps them.

    Row i of x points along the channels that are i modulo `rows`; k + 1 words do so too, each 8/9
    as far as the one before. The others are small.
    """
    owner = torch.arange(channels, device=m.device) % rows
    x = (owner == torch.arange(rows, device=m.device)[:, None]).to(m.dtype)
    w = m.normal(words, channels, scale=0.01)
    places = torch.randperm(words, generator=torch.Generator().manual_seed(words))
    for row in range(rows):
        for rank in range(k + 1):
            w[places[row * (k + 1) + rank]] += x[row] * (8 / 9) ** rank
    return x, w


def _head(
    m: Maker,
    rows: int,
    channels: int,
    words: int,
    k: int = 1,
    format: str = "bf16",
    layout: str = "rows",
) -> Call:
    x, w = _apart(m, rows, channels, words, k)
    return call(x, m.normal(channels, scale=0.05, mean=1.0), pack(w, format, layout=layout), k=k)


def _ties(m: Maker, k: int, format: str = "bf16", times: int = 5) -> Call:
    """Every word repeats one channel of the normalised row, times 127 / 128, which int8 holds
    exactly as well: many logits are equal, and each is rounded once."""
    x = m.normal(3, 16)
    x[0] = x[0].abs().amax()
    x[1, :8] = x[1, 8:]
    words = torch.eye(16, dtype=m.dtype, device=m.device).repeat(times, 1) * (127 / 128)
    return call(x, torch.ones(16, dtype=m.dtype, device=m.device), pack(words, format), k=k)


def _rounded_ties(m: Maker) -> Call:
    """The second word is the better one by 2^-10, which bf16 does not hold."""
    words = torch.zeros(3, 4, dtype=m.dtype, device=m.device)
    words[:2, 0], words[1, 1] = 1, 2.0**-10
    x = torch.full((2, 4), 3.0, dtype=m.dtype, device=m.device)
    return call(x, torch.ones(4, dtype=m.dtype, device=m.device), words)


def _not_finite(m: Maker) -> Call:
    x, w = _apart(m, 4, 64, 40)
    x[0, 3], x[1, 5] = float("nan"), float("inf")
    w[7] = float("nan")
    return call(x, m.normal(64, scale=0.05, mean=1.0), w)


def _not_finite_x(m: Maker, format: str, layout: str) -> Call:
    """Rows that cannot be quantised between rows that can."""
    x, w = _apart(m, 5, 140, 48)
    x[1, 5], x[3, 130] = float("nan"), float("inf")
    return call(x, m.normal(140, scale=0.05, mean=1.0), pack(w, format, layout=layout))


def _vocabulary(
    m: Maker, rows: int, format: str = "bf16", count: int = 151936, channels: int = 1536
) -> Call:
    """A model's whole vocabulary: a 64th of it is random, and repeated, for it is slow to draw."""
    words = m.normal(-(-count // 64), channels, scale=0.02).repeat(64, 1)[:count]
    return call(m.normal(rows, channels), m.normal(channels), pack(words, format))


def _hostile(name: str, error: str, make: Callable[[Maker], Call]) -> Sample:
    return Sample(name, make, "hostile", error=error)


_QWEN2 = "flash-vl, qwen2-vl"  # both decode with Qwen2-1.5B


SAMPLES = (
    Sample("one row", lambda m: _head(m, 1, 96, 300)),
    Sample("rows", lambda m: _head(m, 5, 64, 200)),
    Sample("the best 5", lambda m: _head(m, 2, 64, 200, 5)),
    Sample("int8", lambda m: _head(m, 3, 96, 100, 1, "int8")),
    Sample("int4", lambda m: _head(m, 1, 256, 100, 2, "int4")),
    Sample("ties", lambda m: _ties(m, 1), "edge"),
    Sample("ties, the best 20", lambda m: _ties(m, 20), "edge"),
    Sample("ties, int8, every word", lambda m: _ties(m, 80, "int8"), "edge"),
    # Rows of int8 that do not begin at multiples of 16 bytes: no model has such.
    Sample("72 channels, int8", lambda m: _head(m, 3, 72, 100, 1, "int8"), "edge"),
    Sample("odd sizes, int4", lambda m: _head(m, 3, 77, 101, 3, "int4"), "edge"),
    Sample("11 rows, panels", lambda m: _head(m, 11, 300, 64, 2, "bf16", "panels"), "edge"),
    Sample("7 rows, int8 panels", lambda m: _head(m, 7, 300, 80, 2, "int8", "panels"), "edge"),
    Sample("2 rows, int4 panels", lambda m: _head(m, 2, 300, 80, 2, "int4", "panels"), "edge"),
    Sample("NaN and Inf, int8", lambda m: _not_finite_x(m, "int8", "rows"), "edge"),
    Sample("NaN and Inf, int4", lambda m: _not_finite_x(m, "int4", "rows"), "edge"),
    Sample("NaN and Inf, int8 panels", lambda m: _not_finite_x(m, "int8", "panels"), "edge"),
    Sample("NaN and Inf, int4 panels", lambda m: _not_finite_x(m, "int4", "panels"), "edge"),
    # More words than a block of any kernel, and ties between blocks.
    Sample("ties of 1120 words, the best 70", lambda m: _ties(m, 70, times=70), "edge"),
    Sample("ties by rounding", _rounded_ties, "edge"),
    Sample(
        "ties across 400 words",
        # One product a logit: with sums, PyTorch's own ties would hang on where a word stands.
        lambda m: call(
            m.normal(2, 4),
            m.normal(4),
            torch.eye(4, dtype=m.dtype, device=m.device)[1:2].repeat(400, 1),
            k=3,
        ),
        "edge",
    ),
    Sample("one word", lambda m: call(m.normal(2, 9), m.normal(9), m.normal(1, 9)), "edge"),
    Sample("NaN and Inf", _not_finite, "edge"),
    Sample(
        "rows with a gap",
        lambda m: _strided(m, lambda x: torch.cat([x, x], dim=1)[:, : x.shape[1]]),
        "strided",
    ),
    Sample(
        "the last position of each sequence",
        lambda m: _strided(m, lambda x: torch.stack([x * 0, x], dim=1)[:, -1]),
        "strided",
    ),
    Sample("no rows", lambda m: call(m.normal(0, 16), m.normal(16), m.normal(8, 16)), "zero"),
    Sample(
        "no rows, the best 2",
        lambda m: call(m.normal(0, 4), m.normal(4), m.normal(8, 4), k=2),
        "zero",
    ),
    Sample("no channels", lambda m: call(m.normal(3, 0), m.normal(0), m.normal(8, 0)), "zero"),
    Sample("rows past 2^31", lambda m: _far(m), "far"),
    Sample("third row past 2^31", lambda m: _far(m, 3, 2**30), "far"),
    _hostile(
        "integers",
        "x has dtype int64",
        lambda m: call(m.integers(0, 9, 2, 8), m.normal(8), m.normal(4, 8)),
    ),
    _hostile(
        "a sequence",
        r"x has shape \[1, 2, 8\]; needs 2 axes \[B, C\]",
        lambda m: call(m.normal(1, 2, 8), m.normal(8), m.normal(4, 8)),
    ),
    _hostile(
        "norm of another width",
        r"norm: weight has shape \[7\]; needs \[8\]",
        lambda m: call(m.normal(2, 8), m.normal(7), m.normal(4, 8)),
    ),
    _hostile(
        "vocabulary of another width",
        "w_vocab has 9 columns; needs 8",
        lambda m: call(m.normal(2, 8), m.normal(8), m.normal(4, 9)),
    ),
    _hostile(
        "eps not a number",
        "eps is nan; needs a finite number above 0",
        lambda m: call(m.normal(2, 8), m.normal(8), m.normal(4, 8), float("nan")),
    ),
    _hostile(
        "more than there are",
        "k is 5; needs 1 to 4",
        lambda m: call(m.normal(2, 8), m.normal(8), m.normal(4, 8), k=5),
    ),
    _hostile(
        "none asked for",
        "k is 0; needs 1 to 4",
        lambda m: call(m.normal(2, 8), m.normal(8), m.normal(4, 8), k=0),
    ),
    _hostile(
        "an empty vocabulary",
        "k is 1; needs 1 to 0",
        lambda m: call(m.normal(2, 8), m.normal(8), m.normal(0, 8)),
    ),
    Sample("one row, 2B", lambda m: _vocabulary(m, 1), "bench", family=_QWEN2),
    Sample("8 rows, 2B", lambda m: _vocabulary(m, 8), "bench", family=_QWEN2),
    Sample("one row, 2B, int8", lambda m: _vocabulary(m, 1, "int8"), "bench", family=_QWEN2),
    Sample("one row, 2B, int4", lambda m: _vocabulary(m, 1, "int4"), "bench", family=_QWEN2),
    Sample(
        "one row, InternLM2.5-1.8B",
        lambda m: _vocabulary(m, 1, "bf16", 92553, 2048),
        "bench",
        family="internvl",
    ),
    Sample(
        "one row, Qwen2-0.5B",
        lambda m: _vocabulary(m, 1, "bf16", 151936, 896),
        "bench",
        family="llava-onevision",
    ),
)


def _strided(m: Maker, lay_out: Callable[[Tensor], Tensor]) -> Call:
    x, w = _apart(m, 3, 40, 24)
    return call(lay_out(x), m.normal(40, scale=0.05, mean=1.0), w)


def _far(m: Maker, rows: int = 2, stride: int = 2**31) -> Call:
    x, w = _apart(m, rows, 64, 24)
    far = m.far(rows, 64, stride=stride).copy_(x)
    return call(far, m.normal(64, scale=0.05, mean=1.0), w)


SPEC = OpSpec(
    name="argmax_head",
    schema="(Tensor x, Tensor norm_weight, float norm_eps, Tensor w_data, Tensor? w_scale,"
    " str w_format, SymInt w_columns, int k) -> (Tensor, Tensor)",
    check=check,
    reference=reference,
    fake=fake,
    cost=cost,
    samples=SAMPLES,
    keep=("w_scale",),
    kernels={
        "cpu": SUPPORTS_ALL,
        "cuda": cuda_plan.why_not,
        "triton": triton.supports("argmax_head"),
    },
)


@SPEC.public
def argmax_head(
    x: Tensor,
    norm_weight: Tensor,
    w_vocab: Tensor | PackedWeight,
    eps: float = 1e-6,
    k: int = 1,
) -> tuple[Tensor, Tensor]:
    """The k largest of w_vocab · RMSNorm(x) for each row, largest first, ties to the lowest index.

    x: [B, C] in bfloat16, float16 or float32. norm_weight: [C]. w_vocab: [V, C] in the dtype of x
    or packed. k: 1 to V.
    Returns (values [B, k] in the dtype of x, indices [B, k] int64); values are differentiable.
    Raises TypeError for dtypes, ValueError for shapes, devices, eps and k.
    """
    return SPEC(x, norm_weight, eps, *flat_weight("argmax_head", "w_vocab", w_vocab), k)
