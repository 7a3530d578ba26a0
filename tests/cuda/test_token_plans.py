"""Launch plans of the ops around tokens for the figures of five GPUs."""

from __future__ import annotations

import pytest
import torch

from flashvl_kernels.compression import Compression
from flashvl_kernels.cuda import compress_tokens
from flashvl_kernels.cuda.compress_tokens import CompressPlan
from flashvl_kernels.cuda.device import DEVICES, H100, Device
from flashvl_kernels.spec import REGISTRY, capture


def prepared(how: Compression, *shape: int, device: Device = H100, **kwargs: object) -> object:
    spec = REGISTRY["compress_tokens"]
    x = torch.zeros(shape, dtype=torch.bfloat16)
    _, flat = capture(spec.function, x, how, **kwargs)
    return compress_tokens.prepare(flat, device)


def test_a_shuffled_token_of_the_models_is_two_vectors_a_thread() -> None:
    """4 x 1152 channels are 576 vectors, 4 x 1536 are 768; each is a block."""
    assert compress_tokens.plan(256, 4608, 8, False) == CompressPlan(8, True, 256, 288)
    assert compress_tokens.plan(1792, 6144, 8, False) == CompressPlan(8, True, 1792, 384)


def test_a_pooled_token_is_a_vector_a_thread() -> None:
    assert compress_tokens.plan(576, 1536, 8, True) == CompressPlan(8, True, 576, 192)
    assert compress_tokens.plan(576, 4096, 8, True) == CompressPlan(8, False, 576, 384)


@pytest.mark.parametrize("columns", [1, 77, 96, 4608, 6144, 6152, 18432, 10**6])
@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("rows", [1, 256, 2**31 - 1])
def test_every_compress_plan_covers_its_rows(rows: int, columns: int, pooled: bool) -> None:
    for vector in (1, 4, 8):
        found = compress_tokens.plan(rows, columns, vector, pooled)
        assert found.grid == rows
        assert found.threads % 32 == 0 and found.threads <= compress_tokens.THREADS
        if found.held:
            held = found.threads * compress_tokens.HELD[pooled] * vector
            assert vector > 1 and held >= columns


@pytest.mark.parametrize("device", DEVICES, ids=lambda d: d.name)
def test_one_launch_but_where_normalised_tokens_are_pooled(device: Device) -> None:
    from flashvl_kernels.norm import Norm

    norm = Norm(torch.zeros(64, dtype=torch.bfloat16))
    pooled = Compression("average", norm_first=True)
    assert len(prepared(Compression(), 1, 64, 64, device=device).launches) == 1
    first = Compression(norm_first=True)
    assert len(prepared(first, 1, 64, 64, device=device, norm=norm).launches) == 1
    assert len(prepared(pooled, 1, 64, 64, device=device, norm=norm).launches) == 2


@pytest.mark.parametrize(
    ("how", "order"),
    [
        (Compression(), compress_tokens.IN_ORDER),
        (Compression(order="channel_row_col"), compress_tokens.INTERLEAVED),
        (Compression(order="channel_row_col", factor=4), compress_tokens.SCATTERED),
    ],
)
def test_orders(how: Compression, order: int) -> None:
    """Four lanes put Unfold's order right for blocks of 2x2."""
    (launch,) = prepared(how, 1, 64, 64).launches
    assert launch.arguments.order == order
