"""The time of a call on the device, between two CUDA events.

A call that can be captured is replayed as a CUDA graph, and the cost of its launch on the host is
not in its time; any other is called as it is (`eager`), and where the host is slower than the
device, some of it is. Several calls of each contender are queued in a round, in turns, and the host
waits once, at the end.

Before every call a buffer of twice the L2 cache is written, so that the arguments come from memory.
Copies that drive each other out would do as well, and need no write; but the write also keeps the
device busy (33 µs for 100 MB at 3 TB/s) while the host queues the events and the call, which
otherwise would lie apart by what the host needs. A warm call has the same write in front, and then
itself once, untimed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flashvl_bench.timing import CACHES, Contender, Flat, Rotation
from flashvl_kernels import numerics

GRAPH, EAGER = "graph", "eager"
QUEUED = 4
"""Calls of each contender in a round."""


class DeviceRotation(Rotation):
    """The same arguments in every call, in a cache that the timer empties (`sweeps`) or not."""

    def __init__(self, flat: Flat, warm: bool) -> None:
        super().__init__(flat, 0, warm)

    @property
    def sweeps(self) -> bool:
        return not self.warm


class DeviceTimer:
    """Times calls on `device`, whose L2 cache has `cache_bytes`. cuda: `torch.cuda`."""

    def __init__(self, cache_bytes: int, device: Any = "cuda", cuda: Any = torch.cuda) -> None:
        self._cuda = cuda
        self._written = torch.empty(CACHES * cache_bytes, dtype=torch.uint8, device=device)
        self._graphs: dict[str, Any] = {}

    def rotation(self, flat: Flat, warm: bool) -> Rotation:
        """Arguments for `measure`."""
        return DeviceRotation(flat, warm)

    def prepare(self, contenders: Sequence[Contender], rotation: Rotation) -> dict[str, str]:
        """Capture what can be captured; how each contender is launched from now on."""
        args, self._graphs = rotation.take(), {}
        for contender in contenders:
            with contender.context():
                graph = capture(contender, args, self._cuda)
                if graph is None:
                    contender.run(*args)  # its first call loads kernels
                else:
                    self._graphs[contender.name] = graph
        return {c.name: GRAPH if c.name in self._graphs else EAGER for c in contenders}

    def round(self, contenders: Sequence[Contender], rotation: Rotation) -> list[list[float]]:
        """Seconds of QUEUED calls of each contender."""
        queued: list[list[tuple[Any, Any]]] = [[] for _ in contenders]
        for _ in range(QUEUED):
            for contender, pairs in zip(contenders, queued, strict=True):
                pairs.append(self._queue(contender, rotation))
        self._cuda.synchronize()
        return [[start.elapsed_time(stop) * 1e-3 for start, stop in pairs] for pairs in queued]

    def _queue(self, contender: Contender, rotation: Rotation) -> tuple[Any, Any]:
        args, graph = rotation.take(), self._graphs.get(contender.name)
        start, stop = (self._cuda.Event(enable_timing=True) for _ in range(2))
        self._written.zero_()
        with contender.context():
            if rotation.warm:
                _launch(contender, graph, args)
            start.record()
            _launch(contender, graph, args)
            stop.record()
        return start, stop


def _launch(contender: Contender, graph: Any, args: Flat) -> None:
    if graph is None:
        contender.run(*args)
    else:
        graph.replay()


def capture(contender: Contender, args: Flat, cuda: Any = torch.cuda) -> Any:
    """A graph of the call, or None where none can be made.

    A call that waits for the device is found before the capture, which it would break. And a graph
    counts only if its replay gives what the call gives: a kernel that went to another stream than
    the current one is not in it, and would seem to take no time.
    """
    stream = cuda.Stream()
    stream.wait_stream(cuda.current_stream())
    # A guard around the capture: torch.cuda.graph leaves its stream current where it fails.
    with torch.no_grad(), cuda.stream(stream):
        try:
            wanted = _without_waiting(contender, args, cuda)
            graph = cuda.CUDAGraph()
            with cuda.graph(graph, stream=stream):
                got = _tensors(contender.run(*args))
            usable = _replays(graph, got, wanted, args, cuda)
        except Exception:  # whatever a kernel or the capture raises: it runs without a graph
            cuda.synchronize()
            return None
    cuda.current_stream().wait_stream(stream)
    return graph if usable else None


def _without_waiting(contender: Contender, args: Flat, cuda: Any) -> list[Tensor]:
    """The results of a call, copied, for a function may write into memory of its own; an error
    where PyTorch would wait for the device in it."""
    mode = cuda.get_sync_debug_mode()
    cuda.set_sync_debug_mode("error")
    try:
        found = _tensors(contender.run(*args))
    finally:
        cuda.set_sync_debug_mode(mode)
    return [tensor.clone() for tensor in found]


def _replays(graph: Any, got: list[Tensor], wanted: list[Tensor], args: Flat, cuda: Any) -> bool:
    """Whether a replay writes the results again, bit for bit, over other values."""
    theirs = {a.untyped_storage().data_ptr() for a in args if isinstance(a, Tensor)}
    if any(t.numel() and t.untyped_storage().data_ptr() in theirs for t in got):
        return False  # other values would stand in an argument
    for tensor in got:
        tensor.fill_(float("nan") if tensor.is_floating_point() else -1)
    graph.replay()
    cuda.synchronize()
    same = (torch.allclose(a, b, 0, 0, equal_nan=True) for a, b in zip(got, wanted, strict=True))
    return all(same)


def _tensors(result: Any) -> list[Tensor]:
    return [each for each in numerics.outputs(result) if isinstance(each, Tensor)]
