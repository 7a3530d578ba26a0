"""What a recorded decode step reads: where its rows stand, and tensors that must stay in place."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from flashvl_kernels import KVCache, backends


class Indices(NamedTuple):
    """Where the rows of a decode step stand, one a sequence: int64 [B] each."""

    positions: Tensor
    slots: Tensor
    lengths: Tensor


class IndexMemory:
    """The indices of a step for `batch` sequences on `device`; the next step writes over them."""

    def __init__(self, batch: int, device: torch.device | str = "cpu") -> None:
        self._numbers = array("q", [0] * (3 * batch))
        self._staged = torch.frombuffer(self._numbers, dtype=torch.int64).view(3, batch)
        self._read = self._staged.to(device)  # the same memory on the CPU
        self.indices = Indices(*self._read)

    def write(self, lengths: Sequence[int], capacity: int) -> None:
        """The positions after `lengths`, one a sequence."""
        batch = len(lengths)
        for b, length in enumerate(lengths):
            self._numbers[b] = length
            self._numbers[batch + b] = b * capacity + length
            self._numbers[2 * batch + b] = length + 1
        if self._read is not self._staged:
            # The driver takes a few numbers of pageable memory along with the call: no wait.
            self._read.copy_(self._staged, non_blocking=True)


class Held:
    """What a recorded step reads: nothing of it may have been replaced when it runs again."""

    def __init__(self, layers: nn.ModuleList, cache: KVCache, device: str) -> None:
        self._device = device
        self._layers = layers
        self._backends = backends.preference(device)
        self._cache = [*cache.k, *cache.v]
        self._weights = [
            (held, name, tensor)
            for module in layers.modules()
            for held in (module._parameters, module._buffers)
            for name, tensor in held.items()
        ]

    def same(self, layers: nn.ModuleList, cache: KVCache) -> bool:
        """The same tensors, layers and backends as at the beginning."""
        now = [*cache.k, *cache.v]
        return (
            layers is self._layers
            and len(now) == len(self._cache)
            and all(a is b for a, b in zip(now, self._cache, strict=True))
            and all(held.get(name) is tensor for held, name, tensor in self._weights)
            and self._backends == backends.preference(self._device)
        )

    def addresses(self) -> list[int]:
        """Where the weights and the cache lie."""
        tensors = [tensor for _, _, tensor in self._weights if tensor is not None]
        return [tensor.data_ptr() for tensor in (*tensors, *self._cache)]
