"""Muon's iteration against singular values, and its step against the rule as it is written down."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from flashvl.train import muon
from flashvl.train.muon import Muon, orthogonal

SHAPES = ((24, 24), (16, 40), (40, 16))
PRECISIONS = (torch.float32, torch.bfloat16)


@pytest.fixture(params=PRECISIONS, ids=("fp32", "bf16"))
def precision(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.dtype:
    monkeypatch.setattr(muon, "precision", lambda device: request.param)
    return request.param


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("shape", SHAPES)
def test_singular_values_become_about_one(shape: tuple[int, int], precision: torch.dtype) -> None:
    """Whatever the scale of a matrix; its singular vectors stay."""
    scales = torch.tensor([1e-4, 1.0, 1e4])[:, None, None]
    given = normal(3, *shape)
    turned = orthogonal(given * scales)
    assert turned.dtype == torch.float32
    u, _, v = torch.linalg.svd(given, full_matrices=False)
    within = u.mT @ turned @ v.mT
    values = within.diagonal(dim1=1, dim2=2)
    large = torch.linalg.svdvals(given) > 0.05 * torch.linalg.svdvals(given)[:, :1]
    assert values[large].min() > 0.5 and values.max() < 1.3
    off = within - torch.diag_embed(values)
    assert off.abs().max() < (1e-3 if precision == torch.float32 else 0.05)


def test_a_step_is_the_rule(precision: torch.dtype) -> None:
    """Matrices of a shape go together; each one moves as it would alone."""
    start = [normal(*shape) for shape in (*SHAPES, *SHAPES)]
    together = [torch.nn.Parameter(each.clone()) for each in start]
    optimizer = Muon(together, lr=0.1, momentum=0.9, weight_decay=0.02)
    momenta = [torch.zeros_like(each) for each in start]
    for step in range(2):
        optimizer.zero_grad()
        for index, each in enumerate(together):
            each.grad = normal(*each.shape) * (index + 1) + step
        optimizer.step()
        for index, alone in enumerate(start):
            gradient = normal(*alone.shape) * (index + 1) + step
            momenta[index] = 0.9 * momenta[index] + 0.1 * gradient
            ahead = 0.1 * gradient + 0.9 * momenta[index]
            turned = orthogonal(ahead[None])[0]
            alone *= 1 - 0.1 * 0.02
            alone -= 0.1 * 0.2 * max(alone.shape) ** 0.5 * turned
    for alone, moved in zip(start, together, strict=True):
        torch.testing.assert_close(moved.detach(), alone, rtol=1e-2, atol=2e-2)


def test_what_has_no_gradient_stays_and_vectors_are_refused() -> None:
    moved, kept = (torch.nn.Parameter(normal(4, 4)) for _ in range(2))
    before = kept.detach().clone()
    moved.grad = normal(4, 4)
    Muon([moved, kept]).step()
    assert torch.equal(kept, before) and not torch.equal(moved, before)
    with pytest.raises(ValueError, match=r"shape \[4\]; it needs matrices"):
        Muon([torch.nn.Parameter(normal(4))])
