"""Fused ops round where the modules they replace do: bit-equal to them in bf16 and fp32."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.qwen2.modeling_qwen2 import Qwen2Config, Qwen2MLP, Qwen2RMSNorm
from transformers.models.siglip.modeling_siglip import SiglipMLP, SiglipVisionConfig

from flashvl_kernels import Norm, backend
from flashvl_kernels.ops.argmax_head import argmax_head
from flashvl_kernels.ops.gelu_mlp import gelu_mlp
from flashvl_kernels.ops.layer_norm import layer_norm
from flashvl_kernels.ops.linear import linear
from flashvl_kernels.ops.swiglu_mlp import swiglu_mlp

C, F_ = 96, 160


def _randomised(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    return module.to(dtype).requires_grad_(False)


def _qwen_mlp(x: Tensor) -> tuple[Tensor, Tensor]:
    config = Qwen2Config(hidden_size=C, intermediate_size=F_)
    norm, mlp = (_randomised(m, x.dtype) for m in (Qwen2RMSNorm(C), Qwen2MLP(config)))
    gate_up = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])
    return swiglu_mlp(x, norm.weight, gate_up, mlp.down_proj.weight), x + mlp(norm(x))


def _siglip_mlp(x: Tensor) -> tuple[Tensor, Tensor]:
    config = SiglipVisionConfig(hidden_size=C, intermediate_size=F_)
    norm, mlp = (_randomised(m, x.dtype) for m in (nn.LayerNorm(C, 1e-6), SiglipMLP(config)))
    weights = (mlp.fc1.weight, mlp.fc1.bias, mlp.fc2.weight, mlp.fc2.bias)
    ours = gelu_mlp(x, Norm(norm.weight, norm.bias, 1e-6), *weights, "tanh")
    return ours, x + mlp(norm(x))


def _qkv(x: Tensor) -> tuple[Tensor, Tensor]:
    norm, qkv = (_randomised(m, x.dtype) for m in (Qwen2RMSNorm(C), nn.Linear(C, F_)))
    return linear(x, qkv.weight, qkv.bias, norm=Norm(norm.weight)), qkv(norm(x))


def _output(x: Tensor) -> tuple[Tensor, Tensor]:
    out = _randomised(nn.Linear(C, C), x.dtype)
    return linear(x, out.weight, out.bias, residual=x), x + out(x)


def _adapter(x: Tensor) -> tuple[Tensor, Tensor]:
    norm, fc = (_randomised(m, x.dtype) for m in (nn.LayerNorm(C, 1e-5), nn.Linear(C, F_)))
    ours = linear(x, fc.weight, fc.bias, "gelu", norm=Norm(norm.weight, norm.bias, 1e-5))
    return ours, F.gelu(fc(norm(x)))


def _layer_norm(x: Tensor) -> tuple[Tensor, Tensor]:
    norm = _randomised(nn.LayerNorm(C, 1e-6), x.dtype)
    return layer_norm(x, norm.weight, norm.bias, 1e-6, x.flip(0))[0], norm(x + x.flip(0))


def _head(x: Tensor) -> tuple[Tensor, Tensor]:
    norm, head = (_randomised(m, x.dtype) for m in (Qwen2RMSNorm(C), nn.Linear(C, 400, False)))
    logits = head(norm(x))
    values, indices = argmax_head(x, norm.weight, head.weight)
    assert indices[:, 0].equal(logits.argmax(-1))
    return values[:, 0], logits.amax(-1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(
    "block", [_qwen_mlp, _siglip_mlp, _qkv, _output, _adapter, _layer_norm, _head]
)
def test_bit_equal_to_the_modules(
    block: Callable[[Tensor], tuple[Tensor, Tensor]], dtype: torch.dtype
) -> None:
    x = (torch.randn(7, C, generator=torch.Generator().manual_seed(1)) * 2).to(dtype)
    with torch.no_grad(), backend("torch"):
        ours, theirs = block(x)
    assert ours.equal(theirs), f"{(ours != theirs).sum()} of {ours.numel()} elements differ"
