"""The kernel of rope_qkv.py, writing keys and values into the cache at the rows' slots.

A row whose slot is -1 is padding: masked, never used as an address. Positions and slots past their
ranges are masked too, since nothing looks at their values on a GPU.
"""

from __future__ import annotations

from torch import Tensor

from flashvl_kernels.triton import rope_qkv
from flashvl_kernels.triton.expect import Expect

# The position and the slot of a row.
EXPECT = {"rope_qkv_kernel": Expect(wide_access=True, narrow=2)}
BIT_EQUAL = rope_qkv.BIT_EQUAL


def why_not(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor | None,
    heads: int,
    kv_heads: int,
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Tensor,
) -> str | None:
    """As without a cache."""
    return rope_qkv.why_not(qkv, cos, sin, positions, heads, kv_heads)


def run(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor | None,
    heads: int,
    kv_heads: int,
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Tensor,
) -> Tensor:
    """q [N, heads, D]; writes into k_cache and v_cache [B, kv_heads, S, D]."""
    return rope_qkv.rotate(qkv, cos, sin, positions, heads, k_cache, v_cache, slots)
