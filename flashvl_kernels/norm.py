"""`Norm`, a normalisation handed to another op as its prologue, and the arithmetic of both kinds.

RMSNorm (Zhang and Sennrich, arXiv 1910.07467) rounds as Hugging Face's Llama and Qwen2 do: the
normalised row goes back to the input's dtype before the weight multiplies it. The order matters:
multiplying first moves logits by up to 0.125 in bf16. LayerNorm (Ba et al., arXiv 1607.06450) is
computed in fp32 and rounded once, as `torch.nn.LayerNorm` does.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from flashvl_kernels import checks


@dataclass(frozen=True, eq=False)
class Norm:
    """RMSNorm when `bias` is None, LayerNorm otherwise; over the last axis.

    weight, bias: [C], in the dtype of the tensor to normalise. eps: added to the mean square
    (or the variance).
    """

    weight: Tensor
    bias: Tensor | None = None
    eps: float = 1e-6

    def flat(self) -> tuple[Tensor, Tensor | None, float]:
        """The arguments norm_weight, norm_bias, norm_eps of an op's schema."""
        return self.weight, self.bias, self.eps


NO_NORM: tuple[None, None, float] = (None, None, 1e-6)
"""What an op's schema gets when no norm is asked for."""


def flat(op: str, norm: Norm | None) -> tuple[Tensor | None, Tensor | None, float]:
    """`norm` as schema arguments of `op`."""
    return NO_NORM if norm is None else checks.instance(op, "norm", norm, Norm).flat()


def apply_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """Normalise the last axis of x [..., C] in any float dtype."""
    if bias is not None:
        return F.layer_norm(x, weight.shape, weight, bias, eps)
    wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    rstd = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * (wide * rstd).to(x.dtype)


def check_norm(
    op: str, x: Tensor, channels: int, weight: Tensor | None, bias: Tensor | None, eps: float
) -> None:
    """The norm's tensors fit `channels` and the dtype of x."""
    if weight is None:
        if bias is not None:
            checks.fail(op, "norm.bias", "is given without a weight", "a weight", "Pass both.")
        return
    checks.positive(op, "eps", eps)
    for argument, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None:
            if tensor.shape != (channels,):  # before a text is made that no sound call needs
                checks.shape(op, argument, tensor, [channels], f"the {channels} channels of x")
            checks.same_dtype(op, argument, tensor, x)
