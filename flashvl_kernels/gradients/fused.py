"""Whether a backward pass runs as one kernel (csrc/cpu/product_backward.cpp) or as torch.mm and
passes between the products."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from flashvl_kernels import backends, extension

# Each thread keeps sums of its own for the weights' gradients: 4 MiB of them, then they no longer
# stay in the cache and PyTorch's product is as good.
MOST_WEIGHTS = 1 << 20


@cache
def _there() -> bool:
    return extension.has("product_backward_available") and bool(
        torch.ops.flashvl_cpu.product_backward_available()
    )


def fits(x: Tensor, grad: Tensor, *weights: Tensor) -> bool:
    """Eager fp32 on a CPU with tiles, and weights small enough."""
    return (
        type(grad) is Tensor
        and x.is_cpu
        and x.dtype == torch.float32
        and x.numel() > 0
        and all(0 < w.numel() <= MOST_WEIGHTS for w in weights)
        and not torch.compiler.is_compiling()
        and not torch._C._len_torch_dispatch_stack()
        and "cpu" in backends.preference("cpu")
        and _there()
    )
