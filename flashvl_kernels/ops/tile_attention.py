"""Bidirectional attention inside each tile of a picture, never across tiles.

What every ViT layer of a tiled vision-language model computes. Tiles of one size come as a batch;
tiles of unequal size come packed one after the other with their lengths, as FlashAttention's
`varlen` calls take them (Dao, arXiv 2307.08691): no padding, and no dense mask over all tiles.
Head dimensions are whatever the model has (SigLIP2: 72); nothing is padded in memory.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flashvl_kernels import checks, triton
from flashvl_kernels.attention import (
    attend,
    check_heads,
    check_lengths,
    cuda_reason,
    is_traced,
    runs,
    zeros_from,
)
from flashvl_kernels.gradients import attention as gradients
from flashvl_kernels.spec import SUPPORTS_ALL, Cost, Maker, OpSpec, Sample, call, nbytes


def check(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None, scale: float | None) -> None:
    axes = "[T, N, H, D]" if lengths is None else "[sum(lengths), H, D]"
    checks.rank("tile_attention", "q", q, axes)
    check_heads("tile_attention", q, scale)
    for argument, tensor in (("k", k), ("v", v)):
        checks.shape("tile_attention", argument, tensor, q.shape, "the shape of q")
        checks.same_dtype("tile_attention", argument, tensor, q, "q")
    if lengths is not None:
        checks.rank("tile_attention", "lengths", lengths, "[T]")
        check_lengths("tile_attention", lengths, lengths.shape[0], "its own length", q)


def check_values(
    q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None, scale: float | None
) -> None:
    if lengths is None:
        return
    counts = lengths.tolist()
    for i, count in enumerate(counts):
        if count < 0:
            checks.fail("tile_attention", f"lengths[{i}]", f"is {count}", "0 or more", "Check it.")
    if sum(counts) != q.shape[0]:
        checks.fail(
            "tile_attention",
            "lengths",
            f"sums to {sum(counts)}",
            f"{q.shape[0]}, the rows of q",
            "Pass the number of tokens of every tile, in the order in which they are packed.",
        )


def reference(
    q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None, scale: float | None
) -> Tensor:
    if lengths is None:
        return _batch(q, k, v, scale)
    if is_traced(lengths):
        return _masked(q, k, v, lengths, scale)
    if q.shape[0] == 0:
        return zeros_from(q)
    outs, row = [], 0
    for first, last, count in runs(lengths.tolist()):
        rows = slice(row, row + (last - first) * count)
        tile_q, tile_k, tile_v = (t[rows].unflatten(0, (last - first, count)) for t in (q, k, v))
        outs.append(_batch(tile_q, tile_k, tile_v, scale).flatten(0, 1))
        row = rows.stop
    return torch.cat(outs) if len(outs) > 1 else outs[0]


def _batch(q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
    return attend(q, k.transpose(1, 2), v.transpose(1, 2), scale)


def _masked(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, scale: float | None) -> Tensor:
    """The packed call while tracing, when the lengths are unknown: a mask of tile numbers."""
    ends = lengths.cumsum(0)
    tile = torch.searchsorted(ends, torch.arange(q.shape[0], device=q.device), right=True)
    mask = tile[:, None] == tile[None, :]
    return attend(q[None], k[None].transpose(1, 2), v[None].transpose(1, 2), scale, mask)[0]


def fake(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None, scale: float | None) -> Tensor:
    return q.new_empty(q.shape)


def cost(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None, scale: float | None) -> Cost:
    if lengths is None:
        pairs = q.shape[0] * q.shape[1] ** 2
    else:
        pairs = sum(count**2 for count in lengths.tolist())
    flops = 4 * pairs * q.shape[-2] * q.shape[-1]
    return Cost(nbytes(q, k, v, lengths), nbytes(q), flops)


def _qkv(m: Maker, *shape: int, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    return m.normal(*shape, scale=scale), m.normal(*shape, scale=scale), m.normal(*shape)


def _fused(m: Maker, *shape: int) -> tuple[Tensor, ...]:
    """q, k and v as they lie in the output of one fused projection."""
    *outer, heads, head_dim = shape
    return m.normal(*outer, 3, heads, head_dim).unbind(-3)


def _not_finite(m: Maker) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = _qkv(m, 4, 6, 2, 8)
    q[0, 1, 0, 3], k[1, 2, 1, 5], v[2, 3, 0, 1] = float("nan"), float("nan"), float("inf")
    return q, k, v


def _rising(m: Maker) -> tuple[Tensor, Tensor, Tensor]:
    """The largest score so far grows along the keys."""
    q, k, v = _qkv(m, 1, 300, 1, 40)
    return q, k * torch.linspace(0.1, 4, 300, device=k.device).to(k.dtype)[:, None, None], v


def _minus_infinity(m: Maker) -> tuple[Tensor, Tensor, Tensor]:
    """The scores of the first 150 keys are -inf in tile 0, and all of them in tile 1."""
    q, k, v = _qkv(m, 2, 160, 1, 16)
    q[..., 0] = 1
    k[0, :150, :, 0], k[1, ..., 0] = float("-inf"), float("-inf")
    return q, k, v


SAMPLES = (
    Sample("SigLIP2 heads", lambda m: call(*_qkv(m, 2, 24, 3, 72))),
    Sample("AIMv2 heads", lambda m: call(*_qkv(m, 1, 20, 2, 128))),
    Sample(
        "packed tiles",
        lambda m: call(*_qkv(m, 29, 2, 16), lengths=torch.tensor([9, 7, 7, 6])),
    ),
    Sample("head dim 64, own scale", lambda m: call(*_qkv(m, 3, 9, 2, 64), scale=0.3), "edge"),
    Sample("head dim 80, one token", lambda m: call(*_qkv(m, 2, 1, 3, 80)), "edge"),
    Sample("head dim 7, odd rows", lambda m: call(*_qkv(m, 1, 67, 1, 7)), "edge"),
    Sample("head dim 1", lambda m: call(*_qkv(m, 2, 5, 3, 1)), "edge"),
    Sample("one key takes all", lambda m: call(*_qkv(m, 2, 33, 2, 40, scale=30.0)), "edge"),
    Sample("across kernel blocks", lambda m: call(*_qkv(m, 1, 130, 4, 72)), "edge"),
    Sample("head dim 200", lambda m: call(*_qkv(m, 1, 35, 1, 200)), "edge"),
    Sample("maxima that rise", lambda m: call(*_rising(m)), "edge"),
    Sample("scores of -inf", lambda m: call(*_minus_infinity(m)), "edge"),
    Sample("negative scale", lambda m: call(*_qkv(m, 1, 140, 1, 24), scale=-0.3), "edge"),
    Sample("NaN and Inf stay in their tile", lambda m: call(*_not_finite(m)), "edge"),
    Sample(
        "packed, empty tiles among them",
        lambda m: call(*_qkv(m, 12, 2, 10), lengths=torch.tensor([0, 5, 0, 1, 6, 0])),
        "edge",
    ),
    Sample(
        "packed, across kernel blocks",
        lambda m: call(*_qkv(m, 206, 1, 80), lengths=torch.tensor([33, 0, 129, 44])),
        "edge",
    ),
    Sample("of one fused projection", lambda m: call(*_fused(m, 2, 11, 3, 24)), "strided"),
    Sample(
        "packed, of one fused projection",
        lambda m: call(*_fused(m, 13, 2, 24), lengths=torch.tensor([4, 9])),
        "strided",
    ),
    Sample(
        "heads outside, CLS dropped",
        lambda m: call(*(t.transpose(1, 2)[:, 1:] for t in _qkv(m, 2, 2, 9, 16))),
        "strided",
    ),
    Sample("no tiles", lambda m: call(*_qkv(m, 0, 9, 2, 16)), "zero"),
    Sample("no tokens", lambda m: call(*_qkv(m, 2, 0, 2, 16)), "zero"),
    Sample(
        "packed, no tiles",
        lambda m: call(*_qkv(m, 0, 2, 16), lengths=torch.zeros(0, dtype=torch.int64)),
        "zero",
    ),
    Sample(
        "tiles past 2^31",
        lambda m: call(m.far(2, 5, 2, 16), m.far(2, 5, 2, 16), m.far(2, 5, 2, 16)),
        "far",
    ),
    Sample(
        "third token past 2^31",
        lambda m: call(*(m.far(3, 2, 16, stride=2**30 + 64)[None] for _ in range(3))),
        "far",
    ),
    Sample(
        "integers",
        lambda m: call(*(m.integers(0, 9, 1, 4, 2, 8) for _ in range(3))),
        "hostile",
        error="q has dtype int64",
    ),
    Sample(
        "k of another dtype",
        lambda m: call(
            m.normal(1, 4, 2, 8), m.normal(1, 4, 2, 8, dtype=torch.float64), m.normal(1, 4, 2, 8)
        ),
        "hostile",
        error="k has dtype float64 but q has float32",
    ),
    Sample(
        "fewer KV heads",
        lambda m: call(m.normal(1, 4, 4, 8), m.normal(1, 4, 2, 8), m.normal(1, 4, 2, 8)),
        "hostile",
        error=r"k has shape \[1, 4, 2, 8\]; needs \[1, 4, 4, 8\]",
    ),
    Sample(
        "packed without lengths",
        lambda m: call(*_qkv(m, 12, 2, 8)),
        "hostile",
        error=r"q has shape \[12, 2, 8\]; needs 4 axes",
    ),
    Sample(
        "lengths of another sum",
        lambda m: call(*_qkv(m, 12, 2, 8), lengths=torch.tensor([5, 6])),
        "hostile",
        error="lengths sums to 11; needs 12",
    ),
    Sample(
        "a negative length",
        lambda m: call(*_qkv(m, 12, 2, 8), lengths=torch.tensor([13, -1])),
        "hostile",
        error=r"lengths\[1\] is -1; needs 0 or more",
    ),
    Sample(
        "int32 lengths",
        lambda m: call(*_qkv(m, 12, 2, 8), lengths=torch.tensor([12], dtype=torch.int32)),
        "hostile",
        error="lengths has dtype int32; needs int64",
    ),
    Sample(
        "no head dimension",
        lambda m: call(*_qkv(m, 1, 4, 2, 0)),
        "hostile",
        error="needs a head dimension above 0",
    ),
    Sample(
        "scale not a number",
        lambda m: call(*_qkv(m, 1, 4, 2, 8), scale=float("nan")),
        "hostile",
        error="scale is nan; needs a finite number",
    ),
    Sample(
        "SigLIP2 so400m/16-512",
        lambda m: call(*_qkv(m, 1, 1024, 16, 72)),
        "bench",
        family="flash-vl",
    ),
    Sample(
        "AIMv2 huge/14-448, 4 tiles",
        lambda m: call(*_qkv(m, 4, 1024, 12, 128)),
        "bench",
        family="flash-vl",
    ),
    Sample(
        "LFM2-VL tiles of unequal size",
        lambda m: call(*_qkv(m, 2304, 16, 72), lengths=torch.tensor([1024, 256, 1024])),
        "bench",
        family="lfm2-vl",
    ),
    Sample(
        "InternViT-300M tile",
        lambda m: call(*_qkv(m, 1, 1025, 16, 64)),
        "bench",
        family="internvl",
    ),
    Sample(
        "Qwen2-VL ViT, images of 32x32 and 16x24 patches",
        lambda m: call(*_qkv(m, 1408, 16, 80), lengths=torch.tensor([1024, 384])),
        "bench",
        family="qwen2-vl",
    ),
    Sample(
        "SigLIP so400m/14-384, 2 tiles",
        lambda m: call(*_qkv(m, 2, 729, 16, 72)),
        "bench",
        family="llava-onevision",
    ),
)

SPEC = OpSpec(
    name="tile_attention",
    schema="(Tensor q, Tensor k, Tensor v, Tensor? lengths, float? scale) -> Tensor",
    check=check,
    check_values=check_values,
    reference=reference,
    fake=fake,
    cost=cost,
    samples=SAMPLES,
    backward=gradients.tile_attention,
    kernels={
        "cpu": SUPPORTS_ALL,
        "cuda": cuda_reason,
        "triton": triton.supports("tile_attention"),
    },
)


@SPEC.public
def tile_attention(
    q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """softmax(q k^T * scale) v inside each tile; every token sees its whole tile and no other.

    q, k, v: [T, N, H, D] in bfloat16, float16 or float32, with any strides. With lengths, int64
    [T], the tiles lie packed: q, k, v [sum(lengths), H, D]; a length may be 0.
    scale: D ** -0.5 when left out.
    Returns a tensor like q, contiguous.
    Raises TypeError for dtypes; ValueError for shapes, devices, a scale that is not finite, and
    lengths that are negative or do not sum to the rows of q.
    """
    return SPEC(q, k, v, lengths, scale)
