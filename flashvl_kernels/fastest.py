"""Which backend `auto` tries first on a GPU, call by call: the fastest one that was measured.

On an H100, in bf16, from a cold cache, as CUDA graphs (docs/ladders/h100.md has the numbers). No
other GPU has been measured; `flashvl-bench ops --device cuda` measures one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Order = tuple[str, ...]

TRITON: Order = ("triton", "cuda", "torch")
CUDA: Order = ("cuda", "triton", "torch")
PLAIN: Order = ("torch",)
"""cuBLAS and cuDNN, which PyTorch calls."""

FEW_ROWS = 16
"""Up to here a product is bound by reading its weight: ours is about as fast as PyTorch's, and all
there is where the weight is packed."""
PLAIN_HEAD = 64
"""Channels of a head up to which our dense attention is the faster one."""


def _product(x: Any, weight_format: str) -> Order:
    rows = x.numel() // max(x.shape[-1], 1)
    return PLAIN if weight_format == "bf16" and rows > FEW_ROWS else TRITON


def _linear(x: Any, data: Any, scale: Any, weight_format: str, *_: Any) -> Order:
    return _product(x, weight_format)


def _gelu_mlp(x: Any, *rest: Any) -> Order:
    return _product(x, rest[5])


def _tile_attention(q: Any, k: Any, v: Any, lengths: Any, scale: Any) -> Order:
    return PLAIN if lengths is None and q.shape[-1] > PLAIN_HEAD else TRITON


def _argmax_head(x: Any, *rest: Any) -> Order:
    return CUDA if rest[4] == "int4" else TRITON


def _cuda(*_: Any) -> Order:
    return CUDA


_RULES: dict[str, Callable[..., Order]] = {
    "argmax_head": _argmax_head,
    "gelu_mlp": _gelu_mlp,
    "image_to_patches": _cuda,
    "linear": _linear,
    "merge_image_tokens": _cuda,
    "stitch_tiles": _cuda,
    "tile_attention": _tile_attention,
}


def order(op: str, args: tuple[Any, ...]) -> Order:
    """The backends to try for `op` on schema arguments that are on a GPU, fastest first."""
    rule = _RULES.get(op)
    return TRITON if rule is None else rule(*args)
