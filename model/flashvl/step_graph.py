"""Decode steps from a CUDA graph: the layers of one step on a GPU, captured once and replayed by
one call of the driver. Op by op the host needs longer to queue a step than the GPU to run it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from flashvl.step_inputs import Held, IndexMemory, Indices
from flashvl_kernels import KVCache

Replay = Callable[[], object]


def capture(step: Callable[[], Tensor]) -> tuple[Tensor, Replay]:
    """The result of `step`, not yet computed, and what computes it, each time anew.

    Raises RuntimeError where `step` waits for the GPU, or loads a kernel.
    """
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    # The outer guard, because a capture that fails leaves its stream the current one.
    with (
        torch.cuda.stream(stream),
        torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"),
    ):
        states = step()
    torch.cuda.current_stream().wait_stream(stream)
    return states, graph.replay


class StepGraph:
    """The layers of a decode step on one cache, whose kernels have been loaded by a step before."""

    def __init__(
        self,
        layers: nn.ModuleList,
        rows: Tensor,
        cache: KVCache,
        step: Callable[[Tensor, Indices], Tensor],
        record: Callable[[Callable[[], Tensor]], tuple[Tensor, Replay]] = capture,
    ) -> None:
        self._held = Held(layers, cache, rows.device.type)
        self._addresses = self._held.addresses()
        self.why_not: str | None = None
        with torch.inference_mode(False), torch.no_grad():
            self._rows = torch.empty_like(rows)
            self._memory = IndexMemory(cache.batch, rows.device)
            self._write(rows, cache)
            try:
                self._states, self._replay = record(lambda: step(self._rows, self._memory.indices))
            except RuntimeError as error:  # of the driver, or of PyTorch
                self.why_not = f"no CUDA graph of a step could be made ({error})"

    def fits(self, layers: nn.ModuleList, cache: KVCache) -> bool:
        """Nothing that was captured has been replaced since, or moved: a graph holds addresses."""
        return self._held.same(layers, cache) and self._addresses == self._held.addresses()

    def __str__(self) -> str:
        return "a CUDA graph"

    def run(self, rows: Tensor, cache: KVCache) -> Tensor:
        """The states of one more row a sequence."""
        self._write(rows, cache)
        self._replay()
        return self._states.clone()

    def _write(self, rows: Tensor, cache: KVCache) -> None:
        self._rows.copy_(rows)
        self._memory.write(cache.lengths, cache.capacity)
