"""`KVCache`: the keys and values a decoder has written, and how many there are of each sequence.

Plain memory of a fixed capacity with its bookkeeping on the host. Sequences of a batch have their
own lengths. New rows come right-aligned, [B, N] with the shorter sequences padded on the left, as
`causal_attention` takes them. One step of a decoder reads:

    slots, positions = cache.slots(counts), cache.positions(counts)
    cache.append(counts)
    lengths = cache.lengths_tensor()
    for layer in range(cache.layers):
        q = rope_qkv(qkv, cos, sin, positions, heads, kv_heads, cache.layer(layer), slots)
        out = causal_attention(q.view(batch, -1, heads, head_dim), cache.view(layer), lengths)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flashvl_kernels import checks

Counts = int | Sequence[int]


class KVCache:
    """Keys and values of `layers` layers for `batch` sequences of up to `capacity` positions.

    k, v: a tensor [batch, kv_heads, capacity, head_dim] for each layer. lengths: positions held by
    each sequence. The memory is reserved, not written: pages cost nothing before use, and the
    attention ops never read past `lengths`. Raises ValueError for sizes below 1, TypeError for a
    dtype that is not a float.
    """

    def __init__(
        self,
        layers: int,
        batch: int,
        kv_heads: int,
        capacity: int,
        head_dim: int,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "cpu",
    ) -> None:
        sizes = {"layers": layers, "batch": batch, "kv_heads": kv_heads, "capacity": capacity,
                 "head_dim": head_dim}  # fmt: skip
        for argument, size in sizes.items():
            if size < 1:
                checks.fail("KVCache", argument, f"is {size}", "at least 1", "Check the config.")
        self.batch = batch
        self.capacity = capacity
        self.lengths = [0] * batch
        shape = (batch, kv_heads, capacity, head_dim)
        self.k = [torch.empty(shape, dtype=dtype, device=device) for _ in range(layers)]
        self.v = [torch.empty(shape, dtype=dtype, device=device) for _ in range(layers)]
        checks.is_float("KVCache", "dtype", self.k[0])

    @property
    def layers(self) -> int:
        """How many layers there are."""
        return len(self.k)

    @property
    def longest(self) -> int:
        """The length of the longest sequence."""
        return max(self.lengths)

    @property
    def room(self) -> int:
        """How many more positions every sequence can take."""
        return self.capacity - self.longest

    @property
    def nbytes(self) -> int:
        """Bytes reserved."""
        return 2 * self.layers * self.k[0].numel() * self.k[0].element_size()

    def layer(self, layer: int) -> tuple[Tensor, Tensor]:
        """All of k and v of one layer, [B, Hkv, capacity, D], for `rope_qkv` to write into."""
        return self.k[layer], self.v[layer]

    def view(self, layer: int) -> tuple[Tensor, Tensor]:
        """k and v of one layer up to the longest sequence, for the attention ops; no copy."""
        longest = self.longest
        return self.k[layer][:, :, :longest], self.v[layer][:, :, :longest]

    def lengths_tensor(self) -> Tensor:
        """The lengths as the attention ops take them: int64 [B] on the cache's device."""
        return torch.tensor(self.lengths, dtype=torch.int64, device=self.k[0].device)

    def slots(self, counts: Counts) -> Tensor:
        """Where `counts` new positions a sequence go: int64 [B * max(counts)] for `rope_qkv`.

        Row i of sequence b, right-aligned, goes to slot b * capacity + position; padding is -1.
        Call it before `append`. Raises ValueError when they don't fit.
        """
        wanted = self._fitting(counts)
        first = [b * self.capacity + length for b, length in enumerate(self.lengths)]
        return self._rows(first, wanted, padding=-1)

    def positions(self, counts: Counts) -> Tensor:
        """The positions of `counts` new rows a sequence: int64 [B * max(counts)], padding is 0."""
        return self._rows(self.lengths, self._fitting(counts), padding=0)

    def append(self, counts: Counts) -> None:
        """Book `counts` more positions a sequence; the layers write them through `slots`."""
        wanted = self._fitting(counts)
        self.lengths = [length + count for length, count in zip(self.lengths, wanted, strict=True)]

    def truncate(self, lengths: Counts) -> None:
        """Forget what stands past `lengths`, e.g. the tail of a rejected draft or a failed step."""
        kept = self._per_sequence("lengths", lengths)
        for b, (keep, have) in enumerate(zip(kept, self.lengths, strict=True)):
            if keep > have:
                checks.fail(
                    "KVCache.truncate",
                    f"lengths[{b}]",
                    f"is {keep}",
                    f"0 to {have}, what sequence {b} holds",
                    "Use append to lengthen it.",
                )
        self.lengths = kept

    def make_room(self, positions: int) -> None:
        """Let every sequence hold `positions`: at least doubled when full, so that copying stays a
        constant share of the work. New memory takes the place of the old in `k` and `v`."""
        if positions <= self.capacity:
            return
        capacity, kept = max(positions, 2 * self.capacity), self.longest
        for tensors in (self.k, self.v):
            for layer, old in enumerate(tensors):
                batch, kv_heads, _, head_dim = old.shape
                tensors[layer] = old.new_empty(batch, kv_heads, capacity, head_dim)
                tensors[layer][:, :, :kept] = old[:, :, :kept]
        self.capacity = capacity

    def reset(self) -> None:
        """Forget everything; the memory stays."""
        self.lengths = [0] * self.batch

    def _per_sequence(self, argument: str, counts: Counts) -> list[int]:
        values = [counts] * self.batch if isinstance(counts, int) else list(counts)
        if len(values) != self.batch:
            checks.fail(
                "KVCache", argument, f"has {len(values)} entries", f"{self.batch}, one a sequence",
                "Pass an int to mean the same for every sequence.",
            )  # fmt: skip
        for b, value in enumerate(values):
            if value < 0:
                checks.fail(
                    "KVCache",
                    f"{argument}[{b}]",
                    f"is {value}",
                    "0 or more",
                    "Use truncate to go back.",
                )
        return values

    def _fitting(self, counts: Counts) -> list[int]:
        wanted = self._per_sequence("counts", counts)
        for b, (length, count) in enumerate(zip(self.lengths, wanted, strict=True)):
            if length + count > self.capacity:
                raise ValueError(
                    f"KVCache: sequence {b} holds {length} positions and gets {count} more; needs "
                    f"a capacity of {length + count}, has {self.capacity}. Allocate a larger cache "
                    f"or ask for fewer tokens."
                )
        return wanted

    def _rows(self, first: Sequence[int], counts: Sequence[int], padding: int) -> Tensor:
        widest = max(counts)
        rows = [
            value
            for start, count in zip(first, counts, strict=True)
            for value in (*[padding] * (widest - count), *range(start, start + count))
        ]
        return torch.tensor(rows, dtype=torch.int64, device=self.k[0].device)
