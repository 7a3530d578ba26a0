"""Milliseconds of a call on the GPU alone: a CUDA graph of it, replayed with a cold L2 cache.

A graph, because the host takes longer to launch a short kernel than the kernel takes. Before every
replay a buffer of twice the L2 cache is written, which also keeps the GPU busy while the host
queues the events and the replay. Graphs are made by capture_begin, since `torch.cuda.graph` empties
the allocator's caches each time, which takes longer than all replays of a candidate.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import torch

REPLAYS = 15
CACHES = 2


class GraphTimer:
    """Times calls on the current GPU. `eager`: calls that could not be captured, and were called
    instead."""

    def __init__(self, replays: int = REPLAYS, cuda: Any = torch.cuda) -> None:
        self.eager = 0
        self._cuda = cuda
        self._replays = replays
        properties = cuda.get_device_properties(cuda.current_device())
        cache = getattr(properties, "L2_cache_size", 0) or 64 * 2**20
        self._written = torch.empty(CACHES * cache, dtype=torch.uint8, device="cuda")
        self._stream = cuda.Stream()
        self._pool = cuda.graph_pool_handle()
        self._graph: Any = None  # the last one: a pool lives as long as a graph of it

    def __call__(self, run: Callable[[], Any]) -> float:
        self._cuda.synchronize()
        with torch.no_grad(), self._cuda.stream(self._stream):
            run()
            self._stream.synchronize()
            replay = self._captured(run)
            replay()
            spans = []
            for _ in range(self._replays):
                start, stop = (self._cuda.Event(enable_timing=True) for _ in range(2))
                self._written.zero_()
                start.record()
                replay()
                stop.record()
                spans.append((start, stop))
            self._stream.synchronize()
        return median(float(start.elapsed_time(stop)) for start, stop in spans)

    def _captured(self, run: Callable[[], Any]) -> Callable[[], Any]:
        graph = self._cuda.CUDAGraph()
        try:
            graph.capture_begin(pool=self._pool)
            try:
                run()
            finally:
                graph.capture_end()
        except Exception:  # whatever a call does that a capture forbids
            self._cuda.synchronize()
            self.eager += 1
            return run
        self._graph = graph
        replay: Callable[[], Any] = graph.replay
        return replay
