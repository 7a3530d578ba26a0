"""Decode steps from a tape (flashvl_kernels/tape.py): the layers of one step on the CPU, recorded
once and run again without Python."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from flashvl.step_inputs import Held, IndexMemory, Indices
from flashvl_kernels import KVCache, backends, tape

# Calls that a layer makes: the two linear maps, rope, attention, and the MLP.
CALLS = 5


class StepTape:
    """The layers of a decode step on one cache."""

    def __init__(
        self,
        layers: nn.ModuleList,
        rows: Tensor,
        cache: KVCache,
        step: Callable[[Tensor, Indices], Tensor],
    ) -> None:
        self._held = Held(layers, cache, "cpu")
        # Not inference tensors, whatever the caller's mode: later steps write over these.
        with torch.inference_mode(False), torch.no_grad():
            self._rows = torch.empty_like(rows)
            self._memory = IndexMemory(cache.batch)
            self._write(rows, cache)
            self._states, self._tape = tape.record(lambda: step(self._rows, self._memory.indices))
        self.first: Tensor | None = self._states.clone()  # of the step that was recorded
        self.calls = len(self._tape)
        self.why_not = None
        if self.calls != CALLS * len(layers):
            self.why_not = (
                f"{self.calls} of {CALLS * len(layers)} calls ran on CPU kernels that a tape holds "
                f"(backends in use: {', '.join(backends.preference('cpu'))})"
            )

    def fits(self, layers: nn.ModuleList, cache: KVCache) -> bool:
        """Nothing that was recorded has been replaced since: weights, cache memory, backends."""
        return self._held.same(layers, cache)

    def __str__(self) -> str:
        return f"a tape of {self.calls} calls"

    def run(self, rows: Tensor, cache: KVCache) -> Tensor:
        """The states of one more row a sequence."""
        self._write(rows, cache)
        self._tape.run()
        return self._states.clone()

    def _write(self, rows: Tensor, cache: KVCache) -> None:
        self._rows.copy_(rows)
        self._memory.write(cache.lengths, cache.capacity)
