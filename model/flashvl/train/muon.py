"""Muon: momentum whose matrices are made orthogonal, beside AdamW for everything else.

The idea is Keller Jordan's (2024), the scale that lets both share one rate is Moonlight's (arXiv
2502.16982). `torch.optim.Muon` iterates in bfloat16, which CPUs without bf16 units multiply several
times slower than float32; this one stays in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

STEPS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration; singular values reach 0.7..1.2


def orthogonal(matrix: Tensor) -> Tensor:
    """The nearest matrix whose singular values are about 1 (Newton-Schulz)."""
    a, b, c = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(STEPS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


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
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                ahead = parameter.grad.lerp(state["momentum"], group["momentum"])
                # An orthogonal m x n matrix has entries of 1/sqrt(max(m, n)); AdamW's steps, 0.2.
                scale = 0.2 * max(parameter.shape) ** 0.5
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(orthogonal(ahead), alpha=-group["lr"] * scale)
        return loss
