"""Stand-ins for what `flashvl_bench.gpu` asks of torch.cuda and nvidia-smi, on a made-up device.

The device has a clock of its own, which only kernels advance, and they do their work on CPU
tensors. A kernel launched while a graph is captured goes into the graph and does nothing yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

LAUNCH = 5e-6
"""Seconds between a launch by the host and its kernel; none in a graph."""


class FakeCuda:
    """What DeviceTimer and GpuTarget use of torch.cuda."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []
        self.mode: int | str = 0
        self.current: Any = "default stream"
        self.capturing: Graph | None = None
        self.elsewhere = False  # kernels go to a stream that is not captured

    # ---- what a test's kernels call ----

    def kernel(self, name: str, seconds: float, work: Callable[[], object]) -> None:
        """One launch."""
        if self.capturing is not None and not self.elsewhere:
            self.capturing.kernels.append((name, seconds, work))
            return
        self.now += LAUNCH
        self._run(name, seconds, work)

    def wait(self) -> None:
        """A copy of a value to the host, which waits for the device."""
        if self.mode == "error":
            raise RuntimeError("called a synchronizing CUDA operation")
        if self.capturing is not None:
            raise RuntimeError("operation not permitted when stream is capturing")

    def _run(self, name: str, seconds: float, work: Callable[[], object]) -> None:
        self.log.append(name)
        self.now += seconds
        work()

    # ---- torch.cuda ----

    def is_available(self) -> bool:
        return True

    def current_device(self) -> int:
        return 0

    def get_device_properties(self, device: Any) -> Any:
        return SimpleNamespace(
            name="Made-up 100", major=9, minor=0, multi_processor_count=132, L2_cache_size=1 << 20,
            total_memory=80 << 30, uuid="1234-5678", gcnArchName="gfx000",
        )  # fmt: skip

    def synchronize(self) -> None:
        self.log.append("synchronize")

    def get_sync_debug_mode(self) -> int | str:
        return self.mode

    def set_sync_debug_mode(self, mode: int | str) -> None:
        self.mode = mode

    def Stream(self) -> Any:
        return SimpleNamespace(wait_stream=lambda _: None)

    def current_stream(self) -> Any:
        return SimpleNamespace(wait_stream=lambda _: None)

    def Event(self, enable_timing: bool) -> Event:
        assert enable_timing
        return Event(self)

    def CUDAGraph(self) -> Graph:
        return Graph(self)

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def graph(self, graph: Graph, stream: Any) -> Iterator[None]:
        """As torch.cuda.graph: where the capture fails, its stream stays the current one."""
        self.capturing, before, self.current = graph, self.current, stream
        try:
            yield
        finally:
            self.capturing = None
        self.current = before


class Event:
    def __init__(self, cuda: FakeCuda) -> None:
        self._cuda = cuda
        self.at: float | None = None

    def record(self) -> None:
        self._cuda.now += 1e-12  # no call takes no time at all
        self.at = self._cuda.now
        self._cuda.log.append("event")

    def elapsed_time(self, end: Event) -> float:
        assert self._cuda.log[-1] == "synchronize", "an event is asked before the device is done"
        assert self.at is not None and end.at is not None
        return (end.at - self.at) * 1e3


class Graph:
    def __init__(self, cuda: FakeCuda) -> None:
        self._cuda = cuda
        self.kernels: list[tuple[str, float, Callable[[], object]]] = []

    def replay(self) -> None:
        self._cuda.log.append("replay")
        for kernel in self.kernels:
            self._cuda._run(*kernel)


class Written:
    """In the place of the buffer that a timer writes before each call."""

    def __init__(self, cuda: FakeCuda) -> None:
        self._cuda = cuda

    def zero_(self) -> None:
        self._cuda.log.append("write")
        self._cuda.now += 33e-6


def smi(*states: str) -> Callable[[Sequence[str]], str]:
    """nvidia-smi that tells one state after the other: "SM MHz, memory MHz, C, W, bits"."""
    left = list(states)

    def ask(arguments: Sequence[str]) -> str:
        assert arguments[:2] == ["-i", "GPU-1234-5678"]
        assert arguments[2].startswith("--query-gpu=driver_version,clocks.sm,clocks.mem,")
        assert arguments[3] == "--format=csv,noheader,nounits"
        return f"580.65.06, {left.pop(0)}\n"

    return ask
