"""Whether fp32 products may be rounded to bf16: PyTorch's own setting, told to the CPU extension.

`torch.set_float32_matmul_precision("medium")`, or for CPUs alone
`torch.backends.mkldnn.matmul.fp32_precision = "bf16"`, allows it. Sums stay fp32. Where the level
in force has products of bf16 beside those of fp32 (avx512_bf16, amx), these then use them:
`linear`, `swiglu_mlp` and `gelu_mlp` on 32 rows or more with weights of up to 2^20 numbers, and the
backward passes of the first two and of attention: what training is made of. Elsewhere the setting
changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from flashvl_kernels import extension

PRODUCTS = ("linear", "swiglu_mlp", "gelu_mlp")
"""The ops whose forward pass follows the setting."""

_setting: Callable[[str, str], str] = torch._C._get_fp32_precision_getter
_told = "none"  # the extension starts in fp32


def follow() -> bool:
    """Tell the extension what PyTorch says now. Whether the products named above are in bf16."""
    global _told
    if not has_bf16_products():
        return False
    setting = _setting("mkldnn", "matmul")
    if setting != _told:
        torch.ops.flashvl_cpu.allow_bf16_products(setting == "bf16")
        _told = setting
    return setting == "bf16"


def explained(op: str, args: tuple[Any, ...]) -> str:
    """What `explain` adds to the name of a CPU kernel for this call."""
    if op in PRODUCTS and args[0].dtype is torch.float32 and follow():
        return ", products may be in bf16"
    return ""


def following(run: Callable[..., Any]) -> Callable[..., Any]:
    """`run`, told the setting before every call in fp32."""
    if not has_bf16_products():
        return run

    def follow_and_run(x: torch.Tensor, *args: Any) -> Any:
        if x.dtype is torch.float32:
            follow()
        return run(x, *args)

    return follow_and_run


@cache
def has_bf16_products() -> bool:
    """Whether the level in force has products of bf16 beside those of fp32."""
    return extension.has("has_bf16_products") and bool(torch.ops.flashvl_cpu.has_bf16_products())
