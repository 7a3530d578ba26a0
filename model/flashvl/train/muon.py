"""Muon: momentum whose matrices are made orthogonal, beside AdamW for everything else.

The idea is Keller Jordan's (2024), who iterates in bfloat16; the scale that lets both share one
rate is Moonlight's (arXiv 2502.16982). `torch.optim.Muon` takes a matrix at a time, and bfloat16
also on CPUs that multiply it several times slower than float32; this one takes all matrices of a
shape at once, in the precision that the processor is made for.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from flashvl_kernels import extension

STEPS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration; singular values reach 0.7..1.2


NATIVE_BF16 = ("avx512_bf16", "amx")  # CPU levels


def precision(device: torch.device) -> torch.dtype:
    """What the iteration multiplies in: bf16 where there are instructions for it, else fp32."""
    native = device.type == "cuda" or extension.cpu_level() in NATIVE_BF16
    return torch.bfloat16 if native else torch.float32


def orthogonal(matrices: Tensor) -> Tensor:
    """The nearest matrices whose singular values are about 1 (Newton-Schulz), fp32 [B, m, n]."""
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    x = x.to(precision(x.device)).contiguous()
    for _ in range(STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).float()


class Muon(torch.optim.Optimizer):
    """For matrices of hidden layers; rates and weight decay as one would give AdamW."""

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.05,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.dim() != 2:
                    raise ValueError(
                        f"Muon: a parameter has shape {list(parameter.shape)}; it needs matrices, "
                        "give the others to AdamW"
                    )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One update of every matrix that has a gradient."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            alike: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike[parameter.shape].append(parameter)
            for shape, parameters in alike.items():
                self._update(group, shape, parameters)
        return loss

    def _update(self, group: dict[str, Any], shape: torch.Size, parameters: list[Tensor]) -> None:
        gradients = [each.grad for each in parameters if each.grad is not None]
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
        momenta = [self.state[parameter]["momentum"] for parameter in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        ahead = torch._foreach_lerp(gradients, momenta, group["momentum"])
        # An orthogonal m x n matrix has entries of 1/sqrt(max(m, n)); AdamW's steps, 0.2.
        scale = 0.2 * max(shape) ** 0.5
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        turned = orthogonal(torch.stack(ahead)).unbind()
        torch._foreach_add_(parameters, turned, alpha=-group["lr"] * scale)
