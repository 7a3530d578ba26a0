"""`argmax_head`: the order among equal logits, NaN, and gradients of the values."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flashvl_kernels import backend
from flashvl_kernels.ops.argmax_head import argmax_head


def one_hot_rows(logits: list[float], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """x and a vocabulary for which RMSNorm and product give exactly `logits`."""
    x = torch.ones(1, 4, dtype=dtype)
    w = torch.zeros(len(logits), 4, dtype=dtype)
    w[:, 2] = torch.tensor(logits, dtype=dtype)
    return x, w


@settings(deadline=None, max_examples=60)
@given(
    logits=st.lists(st.sampled_from([-2.0, -0.0, 0.0, 0.5, 3.0]), min_size=1, max_size=70),
    data=st.data(),
    dtype=st.sampled_from([torch.bfloat16, torch.float32]),
)
def test_equal_logits_go_to_the_lowest_index(
    logits: list[float], data: st.DataObject, dtype: torch.dtype
) -> None:
    k = data.draw(st.integers(1, len(logits)))
    x, w = one_hot_rows(logits, dtype)
    with backend("torch"):
        values, indices = argmax_head(x, torch.ones(4, dtype=dtype), w, 1e-30, k)
    expected = sorted(range(len(logits)), key=lambda i: (-logits[i], i))[:k]
    assert indices[0].tolist() == expected
    assert values[0].tolist() == [logits[i] for i in expected]


@pytest.mark.parametrize("k", [1, 3])
def test_the_first_nan_is_the_largest(k: int) -> None:
    x, w = one_hot_rows([1.0, 5.0, 5.0, torch.nan, 2.0, torch.nan], torch.float32)
    values, indices = argmax_head(x, torch.ones(4), w, k=k)
    assert indices[0].tolist() == [3, 5, 1][:k]
    assert values[0, 0].isnan()


def test_a_tie_far_into_a_real_vocabulary() -> None:
    x, w = one_hot_rows([0.0] * 151936, torch.bfloat16)
    w[[150000, 90001, 90002, 12345], 2] = torch.tensor([2.0, 2.0, 2.0, 1.0]).bfloat16()
    norm = torch.ones(4).bfloat16()
    with torch.no_grad():
        assert argmax_head(x, norm, w)[1].tolist() == [[90001]]
        assert argmax_head(x, norm, w, k=5)[1].tolist() == [[90001, 90002, 150000, 12345, 0]]


@pytest.mark.parametrize("k", [1, 3])
def test_gradients_reach_only_the_chosen_words(k: int) -> None:
    x = torch.randn(2, 24, requires_grad=True)
    norm, w = torch.rand(24).add(0.5).requires_grad_(), torch.randn(40, 24, requires_grad=True)
    values, indices = argmax_head(x, norm, w, k=k)
    assert not indices.requires_grad
    values.sum().backward()
    assert w.grad is not None and x.grad is not None
    touched = w.grad.abs().sum(1).nonzero().flatten().tolist()
    assert touched == sorted(set(indices.flatten().tolist()))
    plain = x.detach().clone().requires_grad_()
    n = plain * torch.rsqrt(plain.square().mean(-1, keepdim=True) + 1e-6) * norm.detach()
    (n @ w.detach().T).gather(1, indices).sum().backward()
    torch.testing.assert_close(x.grad, plain.grad)
