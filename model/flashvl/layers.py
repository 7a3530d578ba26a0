"""The two parameter holders every part of the model is made of: a linear map and a norm.

They hold parameters and say how to hand them to an op; the arithmetic is the op's. A `Linear` keeps
either a float parameter or, after `store`, a packed weight in buffers: integers, or panels, the
order the CPU kernels read. Buffers, because a parameter named `weight` in another order would load
without complaint where it means something else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import flashvl_kernels as fvk
from flashvl_kernels.packing import PackedWeight


class Part(nn.Module):
    """A module whose float weights come back to plain rows when gradients are asked for.

    Panels are for inference: an optimiser and a saved state_dict want `weight` [outputs, inputs].
    """

    def requires_grad_(self, requires_grad: bool = True) -> Any:
        """As torch.nn.Module's; True unpacks float panels first. Integer weights stay as they are
        and get no gradient."""
        if requires_grad:
            for module in self.modules():
                if isinstance(module, Linear):
                    module.unpack()
        return super().requires_grad_(requires_grad)


class Linear(Part):
    """x @ weight.T + bias, with `linear`'s prologue norm and epilogue.

    matrices: that `weight` stacks, such as gate and up; kept in panels, none may end inside one.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        bias: bool = True,
        *,
        packable: bool = True,
        matrices: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.shape = (outputs, inputs)
        self.packable, self.matrices = packable, matrices
        self.weight: Tensor | None = nn.Parameter(
            torch.empty(outputs, inputs, device=device, dtype=dtype)
        )
        self.bias: Tensor | None = None
        if bias:
            self.bias = nn.Parameter(torch.empty(outputs, device=device, dtype=dtype))
        self.packed_data: Tensor | None
        self.packed_scale: Tensor | None
        self.register_buffer("packed_data", None)
        self.register_buffer("packed_scale", None)
        self.packed: PackedWeight | None = None

    @property
    def weight_for_op(self) -> Tensor | PackedWeight:
        """What the ops take as a weight: the parameter, or the packed weight."""
        if self.packed is not None:
            return self.packed
        assert self.weight is not None
        return self.weight

    def store(self, packed: PackedWeight) -> None:
        """Replaces the float parameter with `packed`, whose shape must be this layer's."""
        if tuple(packed.shape) != self.shape:
            raise ValueError(
                f"packed weight has shape {tuple(packed.shape)}; this layer needs {self.shape}"
            )
        self.weight = None
        self.packed_data, self.packed_scale = packed.data, packed.scale
        self.packed = packed

    def unpack(self) -> None:
        """Float panels back to the plain parameter; anything else stays as it is."""
        if self.packed is None or self.packed.format != "bf16":
            return
        rows = self.packed.dequantize(self.packed.data.dtype)
        self.weight = nn.Parameter(rows, requires_grad=False)
        self.packed_data, self.packed = None, None

    def forward(
        self,
        x: Tensor,
        activation: str | None = None,
        residual: Tensor | None = None,
        norm: Norm | None = None,
    ) -> Tensor:
        prologue = None if norm is None else norm.as_prologue()
        return fvk.linear(
            x, self.weight_for_op, self.bias, activation=activation, residual=residual,
            norm=prologue,
        )  # fmt: skip

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        scale = self.packed_scale
        super()._apply(fn, recurse)
        if self.packed is not None:
            # Scales stay fp32 when the module is cast: rounded to bf16 they would cost 8 bits of
            # the weight's 8.
            old, data = self.packed, self.packed_data
            assert data is not None
            self.packed_scale = None if scale is None else scale.to(data.device)
            self.packed = PackedWeight(old.format, data, self.packed_scale, self.shape, old.layout)
        return self

    def extra_repr(self) -> str:
        outputs, inputs = self.shape
        kind = "float" if self.packed is None else self.packed.flat()[2]
        return f"{inputs} -> {outputs}, {kind}, bias={self.bias is not None}"


class Norm(nn.Module):
    """RMSNorm, or LayerNorm where it has a bias."""

    def __init__(
        self,
        dim: int,
        eps: float,
        bias: bool = False,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(dim, device=device, dtype=dtype))
        if bias:
            self.bias: Tensor | None = nn.Parameter(torch.empty(dim, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)

    def as_prologue(self) -> fvk.Norm:
        """This norm as an argument of another op."""
        return fvk.Norm(self.weight, self.bias, self.eps)

    def forward(self, x: Tensor) -> Tensor:
        if self.bias is None:
            return fvk.rms_norm(x, self.weight, self.eps)[0]
        return fvk.layer_norm(x, self.weight, self.bias, self.eps)[0]
