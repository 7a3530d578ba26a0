"""`linear` with packed weights: exactness, error, gradients, autocast and cost."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from flashvl_kernels import Norm, backend
from flashvl_kernels.ops.linear import cost, linear
from flashvl_kernels.packing import pack

INTEGER = ("int8", "int4")


@pytest.mark.parametrize("format", INTEGER)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_a_packed_product_is_the_product_with_the_dequantised_weight(
    format: str, dtype: torch.dtype
) -> None:
    x, bias = torch.randn(5, 200).to(dtype), torch.randn(33).to(dtype)
    w = pack(torch.randn(33, 200), format)
    with backend("torch"):
        got = linear(x, w, bias)
    assert got.equal(F.linear(x, w.dequantize(dtype), bias))


@pytest.mark.parametrize("format", INTEGER)
def test_the_error_of_a_packed_product_is_bounded_by_half_a_step_a_weight(format: str) -> None:
    x, w = torch.randn(4, 256, dtype=torch.float64), torch.randn(24, 256, dtype=torch.float64)
    packed = pack(w, format)
    assert packed.scale is not None
    step = packed.scale.double()
    groups = step[:, None] if format == "int8" else step
    width = 256 // groups.shape[1]
    bound = x.abs().unflatten(1, (-1, width)).sum(-1) @ groups.T / 2
    error = (linear(x, packed) - x @ w.T).abs()
    assert (error <= bound * 1.00001).all()
    assert error.max() > 0.01 * bound.max(), "an error far below the bound is not a packed product"


@pytest.mark.parametrize("format", INTEGER)
def test_gradients_pass_a_packed_weight_and_leave_it_alone(format: str) -> None:
    def leaf(*shape: int) -> torch.Tensor:
        return torch.randn(shape, requires_grad=True)

    x, bias, residual, scale, shift = leaf(5, 72), leaf(33), leaf(5, 33), leaf(72), leaf(72)
    packed = pack(leaf(33, 72), format)
    y = linear(x, packed, bias, "silu", residual, Norm(scale, shift))
    y.square().sum().backward()
    assert packed.scale is not None and not packed.scale.requires_grad
    grads = [t.grad for t in (x, bias, residual, scale, shift)]
    same = [t.detach().clone().requires_grad_() for t in (x, bias, residual, scale, shift)]
    n = F.layer_norm(same[0], (72,), same[3], same[4], 1e-6)
    z = F.silu(F.linear(n, packed.dequantize(torch.float32), same[1])) + same[2]
    z.square().sum().backward()
    for got, leaf_ in zip(grads, same, strict=True):
        assert got is not None
        # y, which a kernel rounds otherwise than PyTorch, is a factor of these gradients.
        torch.testing.assert_close(got, leaf_.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("format", INTEGER)
def test_autocast_leaves_the_scales_in_float32(format: str) -> None:
    x, w = torch.randn(3, 96), pack(torch.randn(16, 96), format)
    with torch.no_grad(), backend("torch"):
        with torch.autocast("cpu", torch.bfloat16):
            got = linear(x, w)
        assert got.equal(linear(x.bfloat16(), w))


def test_packed_bytes_are_what_is_counted() -> None:
    x, w = torch.empty(2, 3, 256).bfloat16(), torch.randn(10, 256)
    small = 2 * 6 * 256
    for format, weight in (("int8", 10 * 256 + 4 * 10), ("int4", 10 * 128 + 4 * 10 * 2)):
        flat = pack(w, format).flat()
        got = cost(x, *flat, None, None, None, None, None, 1e-6)
        assert got.bytes_read == small + weight
        assert got.bytes_written == 2 * 6 * 10
        assert got.flops == 2 * 6 * 10 * 256
