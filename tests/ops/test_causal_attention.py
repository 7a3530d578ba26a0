"""Causal and decode attention against their formula, and against each other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from flashvl_kernels.ops.causal_attention import SPEC as CAUSAL
from flashvl_kernels.ops.causal_attention import causal_attention
from flashvl_kernels.ops.decode_attention import SPEC as DECODE
from flashvl_kernels.ops.decode_attention import decode_attention

NAN = float("nan")


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def formula(q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Tensor:
    """One query at a time in float64: softmax over the keys up to its position."""
    out = torch.zeros(q.shape, dtype=torch.float64)
    share = q.shape[2] // k.shape[1]
    for b, length in enumerate(lengths):
        for i in range(q.shape[1]):
            seen = length - q.shape[1] + i + 1
            for h in range(q.shape[2] if seen > 0 else 0):
                keys, values = (t[b, h // share, :seen].double() for t in (k, v))
                scores = keys @ q[b, i, h].double() * q.shape[3] ** -0.5
                out[b, i, h] = scores.softmax(0) @ values
    return out


CASES = [
    ((1, 9, 6, 80), 2, [9]),
    ((2, 4, 4, 64), 1, [11, 11]),
    ((4, 6, 3, 7), 3, [6, 2, 9, 0]),
    ((2, 1, 6, 72), 2, [5, 8]),
    ((1, 8, 2, 128), 1, [3]),
]


@pytest.mark.parametrize(("shape", "kv_heads", "lengths"), CASES)
def test_the_formula(shape: tuple[int, ...], kv_heads: int, lengths: list[int]) -> None:
    q = draw(*shape)
    k, v = (draw(shape[0], kv_heads, 12, shape[3], seed=s) for s in (1, 2))
    got = causal_attention(q, (k, v), torch.tensor(lengths))
    torch.testing.assert_close(got, formula(q, k, v, lengths))
    got = decode_attention(q[:, -1], (k, v), torch.tensor(lengths))
    torch.testing.assert_close(got, formula(q[:, -1:], k, v, lengths)[:, 0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chunks_equal_one_shot_and_decode_equals_the_last_row(dtype: torch.dtype) -> None:
    q = draw(1, 40, 6, 72, dtype=dtype)
    cache = draw(1, 2, 40, 72, seed=1, dtype=dtype), draw(1, 2, 40, 72, seed=2, dtype=dtype)
    whole = causal_attention(q, cache, torch.tensor([40]))
    chunks, done = [], 0
    for size in (17, 1, 15, 7):
        done += size
        chunks.append(causal_attention(q[:, done - size : done], cache, torch.tensor([done])))
    # Both orders of summation round to the same dtype: at most a unit in the last place apart.
    unit = torch.finfo(dtype).eps
    torch.testing.assert_close(torch.cat(chunks, 1), whole, rtol=2 * unit, atol=4 * unit)
    last = decode_attention(q[:, -1], cache, torch.tensor([40]))
    torch.testing.assert_close(last, whole[:, -1], rtol=2 * unit, atol=4 * unit)


def test_a_batch_padded_left_equals_one_by_one() -> None:
    lengths = [7, 3, 3, 0, 5]
    q = draw(5, 7, 4, 16)
    cache = draw(5, 2, 9, 16, seed=1), draw(5, 2, 9, 16, seed=2)
    got = causal_attention(q, cache, torch.tensor(lengths))
    for b, length in enumerate(lengths):
        mine = tuple(t[b : b + 1] for t in cache)
        alone = causal_attention(q[b : b + 1, 7 - length :], mine, torch.tensor([length]))
        torch.testing.assert_close(got[b : b + 1, 7 - length :], alone)
        assert not got[b, : 7 - length].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_lies_past_a_length_has_no_effect(dtype: torch.dtype) -> None:
    """NaN in cache memory never written and in padding rows of q, zeros in the result."""
    lengths = torch.tensor([6, 3, 0])
    q = draw(3, 5, 4, 16, dtype=dtype)
    clean = [torch.zeros(3, 2, 8, 16, dtype=dtype) for _ in range(2)]
    for seed, tensor in enumerate(clean, 1):
        for b, length in enumerate(lengths.tolist()):
            tensor[b, :, :length] = draw(2, length, 16, seed=seed, dtype=dtype)
    dirty = [t.clone() for t in clean]
    for tensor in dirty:
        for b, length in enumerate(lengths.tolist()):
            tensor[b, :, length:] = NAN
    expected = causal_attention(q, tuple(clean), lengths)
    dirty_q = q.clone()
    dirty_q[1, :2], dirty_q[2] = NAN, NAN
    got = causal_attention(dirty_q, tuple(dirty), lengths)
    assert torch.equal(got, expected)
    assert not got[1, :2].any() and not got[2].any()
    one = decode_attention(dirty_q[:, -1], tuple(dirty), lengths)
    assert torch.equal(one, decode_attention(q[:, -1], tuple(clean), lengths))
    assert one.isfinite().all() and not one[2].any()


def test_nan_that_counts_is_not_taken_for_a_mask() -> None:
    """PyTorch's CPU kernel returns zeros for rows whose scores are all NaN."""
    q = draw(2, 3, 4, 16, dtype=torch.float32)
    k, v = (draw(2, 2, 6, 16, seed=s, dtype=torch.float32) for s in (1, 2))
    q[0, 1, 2, 5] = NAN
    k[1, 1, :, 0] = NAN
    lost = causal_attention(q, (k, v), torch.tensor([6, 5])).isnan()
    assert lost[0, 1, 2].all() and int(lost[0].sum()) == 16
    assert lost[1, :, 2:].all() and not lost[1, :, :2].any()
    lost = decode_attention(q[:, 1], (k, v), torch.tensor([6, 5])).isnan()
    assert lost[0, 2].all() and int(lost[0].sum()) == 16
    assert lost[1, 2:].all() and not lost[1, :2].any()


def test_compiled_gradients_of_unequal_sequences() -> None:
    """A compiled backward does not know the lengths and masks; NaN past them must not come in."""
    lengths = torch.tensor([7, 2, 0, 4])
    q = draw(4, 5, 4, 8).requires_grad_()
    caches = [draw(4, 2, 7, 8, seed=s) for s in (1, 2)]
    for tensor in caches:
        for b, length in enumerate(lengths.tolist()):
            tensor[b, :, length:] = NAN
    k, v = (t.requires_grad_() for t in caches)
    weights = draw(4, 5, 4, 8, seed=3)

    def loss(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor) -> Tensor:
        out = causal_attention(q, (k, v), lengths) * weights
        return out.sum() + (decode_attention(q[:, 2], (k, v), lengths) * weights[:, 0]).sum()

    eager = torch.autograd.grad(loss(q, k, v, lengths), (q, k, v))
    exact = formula(q, k, v, lengths.tolist()) * weights
    last = formula(q[:, 2:3], k, v, lengths.tolist())[:, 0] * weights[:, 0]
    expected = torch.autograd.grad(exact.sum() + last.sum(), (q, k, v))
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    traced = torch.autograd.grad(compiled(q, k, v, lengths), (q, k, v))
    for e, mine, theirs in zip(expected, eager, traced, strict=True):
        assert e.isfinite().all()
        torch.testing.assert_close(mine, e)
        torch.testing.assert_close(theirs, e)


@pytest.mark.parametrize(("queries", "lengths"), [(5, [5]), (3, [8]), (6, [2, 0, 9]), (1, [4])])
def test_causal_flops_count_the_pairs_that_see_each_other(queries: int, lengths: list[int]) -> None:
    pairs = sum(max(length - queries + i + 1, 0) for length in lengths for i in range(queries))
    batch, cache = len(lengths), draw(len(lengths), 1, 9, 8)
    q = draw(batch, queries, 2, 8)
    cost = CAUSAL.cost(q, cache, cache, torch.tensor(lengths), None)
    assert cost.flops == 4 * pairs * 2 * 8
    rows = sum(min(queries, length) for length in lengths)
    assert cost.bytes_read == 8 * (rows * 16 + 2 * sum(lengths) * 8 + batch)
    cost = DECODE.cost(q[:, 0], cache, cache, torch.tensor(lengths), None)
    assert cost.flops == 4 * sum(lengths) * 2 * 8
