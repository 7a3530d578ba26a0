"""The Qwen2 decoder (Yang et al., arXiv 2407.10671): grouped-query attention with biases on q, k
and v, NeoX rotation, SwiGLU, RMSNorm.

One layer is five calls: norm and qkv projection, rotation straight into the cache, attention,
output projection and residual, fused MLP. Prompts of unequal length are laid end to end as rows, so
that no padding is computed; only attention looks at one sequence at a time. The last layer attends
and computes its MLP for the last row of each sequence only: no other row is read after it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import flashvl_kernels as fvk
from flashvl import recorded_step
from flashvl.config import DecoderConfig
from flashvl.layers import Linear, Norm, Part
from flashvl.step_inputs import Indices
from flashvl_kernels.cache import KVCache
from flashvl_kernels.packing import PackedWeight


@dataclass(frozen=True)
class Span:
    """`count` new rows of sequence `sequence`, the first at position `start`."""

    sequence: int
    start: int
    count: int

    @property
    def end(self) -> int:
        return self.start + self.count


class DecoderLayer(Part):
    """Attention and MLP, both pre-norm and residual."""

    def __init__(self, config: DecoderConfig, **made: Any) -> None:
        super().__init__()
        width = config.heads * config.head_dim
        self.norm1 = Norm(config.dim, config.eps, **made)
        self.qkv = Linear(config.dim, config.qkv_width, **made)
        self.out = Linear(width, config.dim, bias=False, **made)
        self.norm2 = Norm(config.dim, config.eps, **made)
        self.gate_up = Linear(config.dim, 2 * config.mlp, bias=False, matrices=2, **made)
        self.down = Linear(config.mlp, config.dim, bias=False, **made)

    def forward(
        self, x: Tensor, attend: Callable[[Tensor], Tensor], keep: Tensor | None = None
    ) -> Tensor:
        """x [M, dim]. attend: qkv rows to mixed rows (only those of `keep`, where given)."""
        mixed = attend(self.qkv(x, norm=self.norm1))
        if keep is not None:
            x = x.index_select(0, keep)
        x = self.out(mixed, residual=x)
        return fvk.swiglu_mlp(
            x,
            self.norm2.weight,
            self.gate_up.weight_for_op,
            self.down.weight_for_op,
            self.norm2.eps,
        )


class Decoder(Part):
    """Rows of embeddings to states, and states to logits.

    A state is a row before the final norm; `logits` and `greedy` apply the norm themselves.
    """

    def __init__(self, config: DecoderConfig, **made: Any) -> None:
        super().__init__()
        self.config = config
        self.table = nn.Parameter(torch.empty(config.vocab, config.dim, **made))
        self.layers = nn.ModuleList(DecoderLayer(config, **made) for _ in range(config.layers))
        self.norm = Norm(config.dim, config.eps, **made)
        self.head = None
        if not config.tie_embeddings:
            self.head = Linear(config.dim, config.vocab, bias=False, **made)
        self._rope: tuple[Tensor, Tensor] | None = None

    def embed(self, ids: Tensor) -> Tensor:
        """Embedding rows of int64 ids. Negative ids (image sentinels) give the row of token 0,
        to be written over by merge_image_tokens: they are never used as an index."""
        if ids.dtype != torch.int64:
            raise TypeError(f"input_ids has dtype {ids.dtype}; needs int64: use input_ids.long()")
        if ids.device.type == "cpu" and ids.numel() and not torch.compiler.is_compiling():
            top = int(ids.max())
            if top >= self.config.vocab:
                raise ValueError(
                    f"input_ids holds {top}, but the vocabulary has {self.config.vocab} tokens; "
                    "use the tokenizer that belongs to this checkpoint"
                )
        return F.embedding(ids.clamp(min=0), self.table)

    def logits(self, states: Tensor) -> Tensor:
        """[..., dim] to [..., vocab]."""
        return fvk.linear(states, self._head_weight(), norm=self.norm.as_prologue())

    def greedy(self, states: Tensor) -> Tensor:
        """[B, dim] to the most likely token of each row, int64 [B], without making the logits."""
        _, ids = fvk.argmax_head(states, self.norm.weight, self._head_weight(), self.norm.eps)
        return ids[:, 0]

    def forward_train(self, embeds: Tensor, lengths: Tensor | None = None) -> Tensor:
        """States [B, N, dim] of left-aligned rows [B, N, dim], differentiable and without a cache.

        lengths: int64 [B], rows that count; the states of later rows are zeros. Causality keeps
        those rows out of the earlier ones, so they cost arithmetic but need no mask.
        """
        batch, count, _ = embeds.shape
        self._check_position(count)
        cos, sin = self.rope(embeds.device)
        positions = torch.arange(count, device=embeds.device).repeat(batch)
        full = torch.full((batch,), count, device=embeds.device)
        heads, kv_heads = self.config.heads, self.config.kv_heads

        def attend(qkv: Tensor) -> Tensor:
            parts = fvk.rope_qkv(qkv, cos, sin, positions, heads, kv_heads)
            q, k, v = (part.unflatten(0, (batch, count)) for part in parts)
            mixed = fvk.causal_attention(q, (k.transpose(1, 2), v.transpose(1, 2)), full)
            return mixed.flatten(0, 1).flatten(1)

        x = embeds.flatten(0, 1)
        for layer in self.layers:
            x = layer(x, attend)
        states = x.unflatten(0, (batch, count))
        if lengths is None:
            return states
        valid = torch.arange(count, device=embeds.device) < lengths[:, None]
        return torch.where(valid[:, :, None], states, states.new_zeros(()))

    def extend(self, rows: Tensor, spans: Sequence[Span], cache: KVCache) -> Tensor:
        """Run `rows` [sum of counts, dim], the spans one after the other, and append to the cache.

        Returns the state of the last row of each span, [spans, dim].
        """
        self._check_position(max(span.end for span in spans))
        if all(span.count == 1 for span in spans) and _is_whole(spans, cache):
            x = recorded_step.run(self.layers, rows, cache, partial(self._one_row_each, cache))
            if x is not None:
                cache.append(1)
                return x
        step = _Step(self, spans, cache, rows.device)
        last = len(self.layers) - 1
        x = rows
        for index, layer in enumerate(self.layers):
            x = layer(x, step.attend(index, index == last), step.last if index == last else None)
        for span in spans:
            cache.lengths[span.sequence] = span.end
        return x

    def _one_row_each(self, cache: KVCache, rows: Tensor, at: Indices) -> Tensor:
        """The layers of a decode step: ops of flashvl_kernels on one row a sequence."""
        cos, sin = self.rope(rows.device)
        heads, kv_heads = self.config.heads, self.config.kv_heads

        def attend(kv: tuple[Tensor, Tensor], qkv: Tensor) -> Tensor:
            q = fvk.rope_qkv(qkv, cos, sin, at.positions, heads, kv_heads, kv, at.slots)
            return fvk.decode_attention(q, kv, at.lengths).flatten(1)

        x = rows
        for index, layer in enumerate(self.layers):
            x = layer(x, partial(attend, cache.layer(index)))
        return x

    def new_cache(self, batch: int, capacity: int) -> KVCache:
        """An empty cache that fits this decoder."""
        c = self.config
        return KVCache(
            c.layers, batch, c.kv_heads, capacity, c.head_dim, self.table.dtype, self.table.device
        )

    def rope(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """cos and sin, fp32 [max_positions, head_dim / 2], made once a device."""
        if self._rope is None or self._rope[0].device != device:
            # Angles in fp32, as transformers computes them.
            c = self.config
            exponents = torch.arange(0, c.head_dim, 2, dtype=torch.float32, device=device)
            inverse = 1.0 / c.rope_theta ** (exponents / c.head_dim)
            angles = torch.arange(c.max_positions, device=device).float()[:, None] * inverse
            self._rope = angles.cos(), angles.sin()
        return self._rope

    def _head_weight(self) -> Tensor | PackedWeight:
        return self.table if self.head is None else self.head.weight_for_op

    def _check_position(self, end: int) -> None:
        if end > self.config.max_positions:
            raise ValueError(
                f"the sequence reaches {end} positions, but decoder.max_positions is "
                f"{self.config.max_positions}; shorten the prompt or generate fewer tokens"
            )


def _is_whole(spans: Sequence[Span], cache: KVCache) -> bool:
    """The spans are those of all sequences of the cache, in order."""
    return [span.sequence for span in spans] == list(range(cache.batch))


class _Step:
    """Where the rows of one `extend` stand: positions, cache slots, last rows."""

    def __init__(
        self, decoder: Decoder, spans: Sequence[Span], cache: KVCache, device: torch.device
    ) -> None:
        self.spans, self.cache, self.config = spans, cache, decoder.config
        self.cos, self.sin = decoder.rope(device)
        flat = [p for span in spans for p in range(span.start, span.end)]
        slots = [s.sequence * cache.capacity + p for s in spans for p in range(s.start, s.end)]
        self.positions = torch.tensor(flat, device=device)
        self.slots = torch.tensor(slots, device=device)
        self.lengths = torch.tensor([span.end for span in spans], device=device)
        self.single = all(span.count == 1 for span in spans)
        self.last: Tensor | None = None  # None: every row is the last of its span
        if not self.single:
            counts = torch.tensor([span.count for span in spans], device=device)
            self.last = counts.cumsum(0) - 1
        self.whole = _is_whole(spans, cache)

    def attend(self, index: int, only_last: bool) -> Callable[[Tensor], Tensor]:
        """The attention of layer `index`; with `only_last`, of the last row of each span."""
        keys, values = self.cache.k[index], self.cache.v[index]

        def run(qkv: Tensor) -> Tensor:
            q = fvk.rope_qkv(
                qkv, self.cos, self.sin, self.positions, self.config.heads, self.config.kv_heads,
                cache=(keys, values), slots=self.slots,
            )  # fmt: skip
            if only_last and self.last is not None:
                q = q.index_select(0, self.last)
            if only_last or self.single:
                return self._one_query(q, keys, values).flatten(1)
            return self._many_queries(q, keys, values).flatten(1)

        return run

    def _one_query(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        if self.whole:
            return fvk.decode_attention(q, (keys, values), self.lengths)
        parts = [
            fvk.decode_attention(
                q[i : i + 1], self._cut(span, keys, values), self.lengths[i : i + 1]
            )
            for i, span in enumerate(self.spans)
        ]
        return torch.cat(parts)

    def _many_queries(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        pieces = q.split([span.count for span in self.spans])
        parts = [
            fvk.causal_attention(
                piece[None], self._cut(span, keys, values), self.lengths[i : i + 1]
            )[0]
            for i, (span, piece) in enumerate(zip(self.spans, pieces, strict=True))
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _cut(self, span: Span, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        one = slice(span.sequence, span.sequence + 1)
        return keys[one, :, : span.end], values[one, :, : span.end]
