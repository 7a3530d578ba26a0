"""Launch plan of rope_qkv_cached: rope_qkv's kernel, writing keys and values into the cache."""

from __future__ import annotations

from typing import Any

from flashvl_kernels.cuda import rope_qkv
from flashvl_kernels.cuda.device import Device
from flashvl_kernels.cuda.launch import Instance, Prepared

KERNELS = "rope_qkv"


def instances() -> list[Instance]:
    """The kernels to build."""
    return rope_qkv.instances()


def prepare(flat: tuple[Any, ...], device: Device) -> Prepared:
    """A call on schema arguments."""
    *plain, k_cache, v_cache, slots = flat
    q, launch, tensors = rope_qkv.rotate(tuple(plain), k_cache, v_cache, slots, device)
    if launch is None:
        return Prepared((q,), (), {}, frozenset())
    written = frozenset(("q", "k_cache", "v_cache"))
    tensors |= {"k_cache": k_cache, "v_cache": v_cache}
    return Prepared((q,), (launch,), tensors, written)
