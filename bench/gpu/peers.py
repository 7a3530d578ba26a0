"""Kernels of other libraries as contenders of the op benchmark, where they are installed.

Asked for like backends: `--backend liger,flash-attn,flashinfer`. Each is judged by the rule of the
ops. What a caller knows before the call is made once and is not timed: lengths on the host,
int32 copies of indices, flashinfer's plan; an engine makes those once a step for all layers. What
a library needs to read our layout (Liger copies halves of a packed row) is part of its call.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from flashvl_bench.timing import Flat
from flashvl_kernels import backends
from flashvl_kernels.spec import OpSpec

Run = Callable[..., Any]
MODULES = {"liger": "liger_kernel", "flash-attn": "flash_attn", "flashinfer": "flashinfer"}
NAMES = tuple(MODULES)

HALF = (torch.float16, torch.bfloat16)
LARGEST_HEAD = 256  # channels, of flash-attn
FLASHINFER_HEADS = (64, 128, 256)
WORKSPACE = 128 << 20  # bytes, what flashinfer's documentation gives each of its wrappers


class Peer:
    """A library's kernel in place of an op, made at its first call: which is judged, not timed."""

    def __init__(self, name: str, spec: OpSpec, flat: Flat) -> None:
        self._make, self._flat = ADAPTERS[name, spec.name], flat
        self._run: Run | None = None

    def __call__(self, *args: Any) -> Any:
        if self._run is None:
            self._run = self._make(*self._flat)
        return self._run(*args)


def refusal(name: str, spec: OpSpec, flat: Flat) -> str | None:
    """Why this library does not run this call; None where it should."""
    if backends.device_of(flat) != "cuda":
        return f"{name} is measured on a GPU only; use --device cuda"
    if (name, spec.name) not in ADAPTERS:
        return f"{name} has no kernel that is measured beside {spec.name}"
    if find_spec(MODULES[name]) is None:
        return f"{MODULES[name]} is not installed"
    first = next(arg for arg in flat if isinstance(arg, Tensor))
    if name == "liger":
        return None
    if first.dtype not in HALF:
        return f"{name} takes fp16 and bf16"
    channels = first.shape[-1]
    if name == "flash-attn" and channels > LARGEST_HEAD:
        return f"heads have {channels} channels; flash-attn takes up to {LARGEST_HEAD}"
    if name == "flashinfer" and channels not in FLASHINFER_HEADS:
        known = ", ".join(map(str, FLASHINFER_HEADS))
        return f"heads have {channels} channels; flashinfer takes {known}"
    return None


# ---- liger-kernel: rms_norm, swiglu, rope_qkv -------------------------------------------------


def _liger_rms_norm(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None) -> Run:
    if residual is None:
        from liger_kernel.ops.rms_norm import LigerRMSNormFunction as Norm

        return lambda x, w, eps, _: (Norm.apply(x, w, eps, 0.0, "llama", False), x.new_empty(0))
    from liger_kernel.ops.fused_add_rms_norm import LigerFusedAddRMSNormFunction as Fused

    return lambda x, w, eps, r: Fused.apply(x, r, w, eps, 0.0, "llama", False)


def _liger_swiglu(gate_up: Tensor) -> Run:
    from liger_kernel.ops.swiglu import LigerSiLUMulFunction as SiLUMul

    return lambda gate_up: SiLUMul.apply(*gate_up.chunk(2, -1))


def _liger_rope_qkv(*_: Any) -> Run:
    from liger_kernel.ops.rope import LigerRopeFunction as Rope

    def run(
        qkv: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None, heads: int, kv_heads: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows = slice(qkv.shape[0]) if positions is None else positions
        split = qkv.unflatten(1, (heads + 2 * kv_heads, 2 * cos.shape[1]))
        # Copies, because Liger turns contiguous tensors in place; others it copies itself.
        q, k, v = (
            part.to(qkv.dtype, copy=True, memory_format=torch.contiguous_format)
            for part in split.split((heads, kv_heads, kv_heads), 1)
        )
        # [1, H, N, D], as Hugging Face has them; of cos and sin it reads the left half only.
        turned = Rope.apply(
            q[None].transpose(1, 2), k[None].transpose(1, 2), cos[rows][None], sin[rows][None]
        )
        q, k = (each.transpose(1, 2)[0] for each in turned[:2])
        return q, k, v

    return run


# ---- flash-attn -------------------------------------------------------------------------------


def _flash_tile_attention(
    q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None, scale: float | None
) -> Run:
    if lengths is None:
        from flash_attn import flash_attn_func

        return lambda q, k, v, _, scale: flash_attn_func(q, k, v, softmax_scale=scale)
    from flash_attn import flash_attn_varlen_func

    ends, longest = _ends(lengths), int(lengths.max())
    return lambda q, k, v, _, scale: flash_attn_varlen_func(
        q, k, v, ends, ends, longest, longest, softmax_scale=scale
    )


def _flash_causal_attention(
    q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, scale: float | None
) -> Run:
    from flash_attn import flash_attn_with_kvcache

    counts = lengths.int()
    return lambda q, k, v, _, scale: flash_attn_with_kvcache(
        q,
        k.transpose(1, 2),
        v.transpose(1, 2),
        cache_seqlens=counts,
        softmax_scale=scale,
        causal=True,
    )


def _flash_decode_attention(*made_for: Any) -> Run:
    run = _flash_causal_attention(*made_for)
    return lambda q, *rest: run(q[:, None], *rest)[:, 0]


# ---- flashinfer -------------------------------------------------------------------------------


def _flashinfer_tile_attention(
    q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None, scale: float | None
) -> Run:
    from flashinfer import BatchPrefillWithRaggedKVCacheWrapper

    wrapper = BatchPrefillWithRaggedKVCacheWrapper(_workspace(q), "NHD")
    ends = _ends(
        torch.full((q.shape[0],), q.shape[1], device=q.device) if lengths is None else lengths
    )
    heads, channels = q.shape[-2:]
    wrapper.plan(
        ends, ends, heads, heads, channels, causal=False, sm_scale=scale, q_data_type=q.dtype
    )
    if lengths is not None:
        return lambda q, k, v, *_: wrapper.run(q, k, v)
    return lambda q, k, v, *_: wrapper.run(*(t.flatten(0, 1) for t in (q, k, v))).view(q.shape)


def _flashinfer_causal_attention(
    q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, scale: float | None
) -> Run:
    from flashinfer import BatchPrefillWithPagedKVCacheWrapper

    wrapper = BatchPrefillWithPagedKVCacheWrapper(_workspace(q), "HND")
    starts = _ends(torch.full_like(lengths, q.shape[1]))
    wrapper.plan(
        starts,
        *_pages(k, lengths),
        causal=True,
        sm_scale=scale,
        q_data_type=q.dtype,
        num_qo_heads=q.shape[2],
        num_kv_heads=k.shape[1],
        head_dim_qk=q.shape[3],
        page_size=k.shape[2],
    )
    return lambda q, k, v, *_: wrapper.run(q.flatten(0, 1), (k, v)).view(q.shape)


def _flashinfer_decode_attention(
    q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, scale: float | None
) -> Run:
    from flashinfer import BatchDecodeWithPagedKVCacheWrapper

    wrapper = BatchDecodeWithPagedKVCacheWrapper(_workspace(q), "HND")
    wrapper.plan(
        *_pages(k, lengths),
        num_qo_heads=q.shape[1],
        num_kv_heads=k.shape[1],
        head_dim=q.shape[2],
        page_size=k.shape[2],
        sm_scale=scale,
        q_data_type=q.dtype,
        kv_data_type=k.dtype,
    )
    return lambda q, k, v, *_: wrapper.run(q, (k, v))


def _ends(lengths: Tensor) -> Tensor:
    """0, and where each sequence ends: int32 [B + 1]."""
    return torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()


def _pages(k: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Our cache [B, Hkv, S, D] as flashinfer's pages: one of S positions for each sequence."""
    numbers = torch.arange(k.shape[0] + 1, dtype=torch.int32, device=k.device)
    return numbers, numbers[:-1], lengths.int()


def _workspace(q: Tensor) -> Tensor:
    return torch.zeros(WORKSPACE, dtype=torch.uint8, device=q.device)


ADAPTERS: dict[tuple[str, str], Callable[..., Run]] = {
    ("liger", "rms_norm"): _liger_rms_norm,
    ("liger", "swiglu"): _liger_swiglu,
    ("liger", "rope_qkv"): _liger_rope_qkv,
    ("flash-attn", "tile_attention"): _flash_tile_attention,
    ("flash-attn", "causal_attention"): _flash_causal_attention,
    ("flash-attn", "decode_attention"): _flash_decode_attention,
    ("flashinfer", "tile_attention"): _flashinfer_tile_attention,
    ("flashinfer", "causal_attention"): _flashinfer_causal_attention,
    ("flashinfer", "decode_attention"): _flashinfer_decode_attention,
}
