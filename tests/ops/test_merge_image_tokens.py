"""merge_image_tokens where values are not checked, and where its gradients go."""

from __future__ import annotations

import pytest
import torch

from flashvl_kernels.ops.merge_image_tokens import merge_image_tokens, reference


def test_rows_are_taken_in_order_across_the_batch() -> None:
    ids = torch.tensor([[5, -200, -201, 7], [-200, 1, -200, 2]])
    rows = torch.arange(1.0, 5.0)[:, None].expand(4, 3)
    got = merge_image_tokens(torch.zeros(2, 4, 3), ids, rows)
    assert got[..., 0].tolist() == [[0, 1, 2, 0], [3, 0, 4, 0]]


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_unchecked_counts_never_read_out_of_bounds(count: int) -> None:
    """As under torch.compile: a sentinel without a row keeps its embedding, other ids are text."""
    ids = torch.tensor([-200, 4, -201, -7, -201])
    embeds, rows = torch.full((5, 2), -1.0), torch.arange(10.0)[:count, None].expand(count, 2)
    got = reference(embeds, ids, rows)[:, 0].tolist()
    filled = [float(i) if i < count else -1.0 for i in range(3)]
    assert got == [filled[0], -1.0, filled[1], -1.0, filled[2]]


def test_gradients_reach_text_and_image_rows_once() -> None:
    ids = torch.tensor([3, -200, -201, 9])
    embeds, rows = torch.randn(4, 2, requires_grad=True), torch.randn(2, 2, requires_grad=True)
    merge_image_tokens(embeds, ids, rows).sum().backward()
    assert embeds.grad is not None and rows.grad is not None
    assert embeds.grad[:, 0].tolist() == [1, 0, 0, 1]
    assert rows.grad.eq(1).all()


def test_embeddings_are_not_written() -> None:
    embeds = torch.zeros(2, 2)
    merge_image_tokens(embeds, torch.tensor([-200, 1]), torch.ones(1, 2))
    assert embeds.eq(0).all()
