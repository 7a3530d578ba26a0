"""Whether a part of a backward pass runs on a kernel of the CPU extension or as PyTorch's own ops.

The kernels are internal: the CPU extension has them under flashvl_cpu::, no other backend does, and
compiled graphs are made of PyTorch's ops, which the compiler can fuse.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from flashvl_kernels import backends, extension, precision
from flashvl_kernels.gradients import watched

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# Each thread keeps sums of its own for the weights' gradients: 4 MiB of them, then they no longer
# stay in the cache and PyTorch's product is as good.
MOST_WEIGHTS = 1 << 20
LONGEST = 8192  # row or column of them: 256 rows of it in parts are 12 MiB


def runs(name: str, grad: Tensor) -> bool:
    """The extension has the kernel `name`, and this is an eager call that it may take."""
    return (
        type(grad) is Tensor
        and grad.is_cpu
        and grad.dtype in _DTYPES
        and not torch.compiler.is_compiling()
        and not torch._C._len_torch_dispatch_stack()
        and not torch._C._functorch.peek_interpreter_stack()
        and "cpu" in backends.preference("cpu")
        and extension.has(name)
    )


@cache
def _vectors() -> bool:
    return bool(torch.ops.flashvl_cpu.product_backward_available())


def runs_in_fp32(name: str, x: Tensor, grad: Tensor) -> bool:
    """The same, of kernels for fp32 on a CPU with AVX2, which never see an empty tensor. They
    follow PyTorch's setting for the precision of fp32 products."""
    found = runs(name, grad) and x.dtype == torch.float32 and x.numel() > 0 and _vectors()
    if found:
        watched.uses(f"{name} in bf16" if precision.follow() else name)
    return found


def runs_in_one(name: str, x: Tensor, grad: Tensor, *weights: Tensor) -> bool:
    """The whole backward pass of products is one kernel: the weights are small, too."""
    small = all(0 < w.numel() <= MOST_WEIGHTS and max(w.shape) <= LONGEST for w in weights)
    return small and runs_in_fp32(name, x, grad)
