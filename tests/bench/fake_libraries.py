"""Stand-ins for liger-kernel, flash-attn and flashinfer: modules of their API, computed by PyTorch.

Signatures and layouts are those of Liger-Kernel 0.8, flash-attn 2.8 and flashinfer 0.7. They are as
strict as the libraries where our layout is not theirs.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from flashvl_kernels.norm import apply_norm

HALF = (torch.float16, torch.bfloat16)


def install(monkeypatch: pytest.MonkeyPatch, name: str, **members: Any) -> None:
    """A module `name` with these members, and its parents."""
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        inner = ".".join(parts[:end])
        if inner not in sys.modules or end == len(parts):
            module = ModuleType(inner)
            module.__spec__ = ModuleSpec(inner, None, is_package=True)
            module.__path__ = []  # type: ignore[attr-defined]
            monkeypatch.setitem(sys.modules, inner, module)
    for member, value in members.items():
        setattr(sys.modules[name], member, value)


def function(run: Any) -> Any:
    """A torch.autograd.Function of which only `apply` is used."""
    return type("Function", (), {"apply": staticmethod(run)})


# ---- attention, in fp32 -----------------------------------------------------------------------


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float | None, causal: bool) -> Tensor:
    """q [N, H, D] over k and v [S, Hkv, D]; causal is right-aligned, as in both libraries."""
    assert q.dtype in HALF and q.dtype == k.dtype == v.dtype
    shared = q.shape[1] // k.shape[1]
    wide_k, wide_v = (t.float().repeat_interleave(shared, 1) for t in (k, v))
    scores = torch.einsum("nhd,shd->hns", q.float(), wide_k)
    scores *= q.shape[-1] ** -0.5 if scale is None else scale
    if causal:
        seen = torch.ones(q.shape[0], k.shape[0]).tril(k.shape[0] - q.shape[0]).bool()
        scores = scores.masked_fill(~seen, float("-inf"))
    weights = scores.softmax(-1).nan_to_num(0)  # a row that sees nothing
    return torch.einsum("hns,shd->nhd", weights, wide_v).to(q.dtype)


def packed(q: Tensor, k: Tensor, v: Tensor, ends: Tensor, scale: float | None) -> Tensor:
    assert ends.dtype == torch.int32 and ends[0] == 0 and ends[-1] == q.shape[0]
    cuts = list(zip(ends.tolist(), ends[1:].tolist(), strict=False))
    return torch.cat([attend(q[a:b], k[a:b], v[a:b], scale, False) for a, b in cuts])


# ---- flash-attn -------------------------------------------------------------------------------


def flash_attn_func(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False):  # type: ignore
    rows = zip(q, k, v, strict=True)
    return torch.stack([attend(*row, softmax_scale, causal) for row in rows])


def flash_attn_varlen_func(  # type: ignore
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0,
    softmax_scale=None, causal=False,
):  # fmt: skip
    assert max_seqlen_q == max_seqlen_k == int((cu_seqlens_q[1:] - cu_seqlens_q[:-1]).max())
    assert torch.equal(cu_seqlens_q, cu_seqlens_k) and not causal
    return packed(q, k, v, cu_seqlens_q, softmax_scale)


def flash_attn_with_kvcache(  # type: ignore
    q, k_cache, v_cache, k=None, v=None, cache_seqlens=None, softmax_scale=None, causal=False
):
    assert cache_seqlens.dtype == torch.int32 and k_cache.shape[2] <= q.shape[2]
    rows = zip(q, k_cache, v_cache, cache_seqlens.tolist(), strict=True)
    return torch.stack([attend(q, k[:n], v[:n], softmax_scale, causal) for q, k, v, n in rows])


# ---- flashinfer -------------------------------------------------------------------------------


class Ragged:
    def __init__(self, float_workspace_buffer: Tensor, kv_layout: str = "NHD") -> None:
        assert float_workspace_buffer.dtype == torch.uint8 and kv_layout == "NHD"

    def plan(  # type: ignore
        self, qo_indptr, kv_indptr, num_qo_heads, num_kv_heads, head_dim_qk, *, causal=False,
        sm_scale=None, q_data_type="float16",
    ):  # fmt: skip
        assert not causal and torch.equal(qo_indptr, kv_indptr)
        self.planned = qo_indptr, num_qo_heads, num_kv_heads, head_dim_qk, q_data_type
        self.scale = sm_scale

    def run(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ends, *planned = self.planned
        assert planned == [q.shape[1], k.shape[1], q.shape[2], q.dtype]
        return packed(q, k, v, ends, self.scale)


class Paged:
    """Of pages [pages, Hkv, S, D], one for each sequence."""

    def __init__(self, float_workspace_buffer: Tensor, kv_layout: str = "NHD") -> None:
        assert float_workspace_buffer.dtype == torch.uint8 and kv_layout == "HND"

    def plan_(self, indptr, indices, last_page_len, page_size, scale) -> None:  # type: ignore
        batch = len(last_page_len)
        assert indptr.dtype == indices.dtype == last_page_len.dtype == torch.int32
        assert indptr.tolist() == list(range(batch + 1)) and indices.tolist() == list(range(batch))
        self.lengths, self.page, self.scale = last_page_len.tolist(), page_size, scale
        assert all(1 <= length <= page_size for length in self.lengths)

    def rows(self, q: list[Tensor], cache: tuple[Tensor, Tensor], causal: bool) -> list[Tensor]:
        k, v = (pages.transpose(1, 2) for pages in cache)
        assert k.shape[1] == self.page
        sequences = zip(q, k, v, self.lengths, strict=True)
        return [attend(q, k[:n], v[:n], self.scale, causal) for q, k, v, n in sequences]


class PagedPrefill(Paged):
    def plan(  # type: ignore
        self, qo_indptr, paged_kv_indptr, paged_kv_indices, paged_kv_last_page_len, num_qo_heads,
        num_kv_heads, head_dim_qk, page_size, *, causal=False, sm_scale=None, q_data_type="float16",
    ):  # fmt: skip
        self.plan_(paged_kv_indptr, paged_kv_indices, paged_kv_last_page_len, page_size, sm_scale)
        self.starts, self.causal = qo_indptr.tolist(), causal
        self.planned = num_qo_heads, num_kv_heads, head_dim_qk, q_data_type

    def run(self, q: Tensor, paged_kv_cache: tuple[Tensor, Tensor]) -> Tensor:
        assert self.planned == (q.shape[1], paged_kv_cache[0].shape[1], q.shape[2], q.dtype)
        cuts = zip(self.starts, self.starts[1:], strict=False)
        return torch.cat(self.rows([q[a:b] for a, b in cuts], paged_kv_cache, self.causal))


class PagedDecode(Paged):
    def plan(  # type: ignore
        self, indptr, indices, last_page_len, num_qo_heads, num_kv_heads, head_dim, page_size,
        *, sm_scale=None, q_data_type="float16", kv_data_type=None,
    ):  # fmt: skip
        self.plan_(indptr, indices, last_page_len, page_size, sm_scale)
        self.planned = num_qo_heads, num_kv_heads, head_dim, q_data_type, kv_data_type

    def run(self, q: Tensor, paged_kv_cache: tuple[Tensor, Tensor]) -> Tensor:
        k = paged_kv_cache[0]
        assert self.planned == (q.shape[1], k.shape[1], q.shape[2], q.dtype, k.dtype)
        return torch.cat(self.rows([row[None] for row in q], paged_kv_cache, False))


# ---- Liger ------------------------------------------------------------------------------------


def _norm(x, w, eps, offset=0.0, casting_mode="llama", in_place=True):  # type: ignore
    assert (offset, casting_mode, in_place) == (0.0, "llama", False)
    return apply_norm(x, w, None, eps)


def _add_norm(x, r, w, eps, offset=0.0, casting_mode="llama", in_place=False):  # type: ignore
    return _norm(x + r, w, eps, offset, casting_mode, in_place), x + r


def _silu_mul(a: Tensor, b: Tensor) -> Tensor:
    return torch.nn.functional.silu(a) * b


def _rope(q, k, cos, sin, position_ids=None, unsqueeze_dim=1):  # type: ignore
    """q and k [B, H, N, D], turned in place where they lie as [B, N, H, D], as Liger does."""
    assert cos.dim() == 3 and cos.shape[:2] == (1, q.shape[2])
    found = []
    for x in (q, k):
        x, half = x.transpose(1, 2).contiguous(), x.shape[-1] // 2
        c, s = cos[0, :, None, :half], sin[0, :, None, :half]
        left, right = x[..., :half].to(s.dtype), x[..., half:].to(s.dtype)
        x.copy_(torch.cat((left * c - right * s, right * c + left * s), -1))
        found.append(x.transpose(1, 2))
    return *found, cos, sin


def install_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """All three."""
    ops = "liger_kernel.ops"
    install(monkeypatch, f"{ops}.rms_norm", LigerRMSNormFunction=function(_norm))
    fused = {"LigerFusedAddRMSNormFunction": function(_add_norm)}
    install(monkeypatch, f"{ops}.fused_add_rms_norm", **fused)
    install(monkeypatch, f"{ops}.swiglu", LigerSiLUMulFunction=function(_silu_mul))
    install(monkeypatch, f"{ops}.rope", LigerRopeFunction=function(_rope))
    install(
        monkeypatch,
        "flash_attn",
        flash_attn_func=flash_attn_func,
        flash_attn_varlen_func=flash_attn_varlen_func,
        flash_attn_with_kvcache=flash_attn_with_kvcache,
    )
    install(
        monkeypatch,
        "flashinfer",
        BatchPrefillWithRaggedKVCacheWrapper=Ragged,
        BatchPrefillWithPagedKVCacheWrapper=PagedPrefill,
        BatchDecodeWithPagedKVCacheWrapper=PagedDecode,
    )
