"""The GPU that a run of `flashvl-bench ops` is on."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from flashvl_bench import machine
from flashvl_bench.ceilings import Ceilings
from flashvl_bench.gpu import ceilings, state
from flashvl_bench.gpu.state import State
from flashvl_bench.gpu.timing import DeviceTimer
from flashvl_bench.machine import Machine

ASSUMED_CACHE = 64 << 20
"""Bytes of L2 where PyTorch does not tell: more than most GPUs have."""
BUSY_SECONDS, BUSY_BUFFER = 0.5, 1 << 30


@dataclass(frozen=True)
class Gpu:
    """The facts of a GPU, and its state before the cases and after them."""

    name: str
    arch: str
    multiprocessors: int
    cache_bytes: int
    memory_bytes: int
    runtime: str
    driver: str = ""
    before: State | None = None
    after: State | None = None

    def line(self) -> str:
        """The facts on one line."""
        return (
            f"{self.name} ({self.arch}), {self.multiprocessors} multiprocessors, L2 cache "
            f"{self.cache_bytes / 2**20:.3g} MiB, memory {self.memory_bytes / 2**30:.3g} GiB, "
            f"{self.runtime}"
        )


def missing(cuda: Any = torch.cuda) -> str | None:
    """Why nothing can be measured on a GPU here; None where it can."""
    if cuda.is_available():
        return None
    built = torch.version.cuda or torch.version.hip
    return (
        f"PyTorch {torch.__version__} sees no GPU: no driver, no device, or all of them hidden"
        if built
        else f"PyTorch {torch.__version__} is a build without CUDA; install one with it"
    )


class GpuTarget:
    """The current GPU. Everything it is asked comes in as a parameter."""

    def __init__(
        self, device: Any = "cuda", cuda: Any = torch.cuda, ask: state.Ask = state.ask
    ) -> None:
        self._device, self._cuda, self._ask = device, cuda, ask
        self._properties = cuda.get_device_properties(cuda.current_device())
        self.cache_bytes = int(getattr(self._properties, "L2_cache_size", 0)) or ASSUMED_CACHE
        self.timer: DeviceTimer = DeviceTimer(self.cache_bytes, device, cuda)

    def ceilings(self, quick: bool) -> Ceilings:
        """Of this GPU, now."""
        return ceilings.measure(self.cache_bytes, quick, self._device, self._cuda)

    def facts(self) -> Machine:
        """The machine and its GPU."""
        p = self._properties
        hip = torch.version.hip
        arch = str(p.gcnArchName).split(":")[0] if hip else f"sm_{p.major}{p.minor}"
        gpu = Gpu(
            name=p.name,
            arch=arch,
            multiprocessors=p.multi_processor_count,
            cache_bytes=self.cache_bytes,
            memory_bytes=p.total_memory,
            runtime=f"ROCm {hip}" if hip else f"CUDA {torch.version.cuda}",
        )
        return replace(machine.facts(), gpu=gpu)

    def look(self, here: Machine, top: Ceilings) -> Machine:
        """`here` with the state of the GPU at work: the first time as that before the cases, then
        as that after them. top: what it can do, to know how much work is half a second."""
        assert here.gpu is not None
        size = min(BUSY_BUFFER, self._properties.total_memory // 16)
        ceilings.keep_busy(BUSY_SECONDS, top, self._device, size)
        uuid = getattr(self._properties, "uuid", None)
        index = f"GPU-{uuid}" if uuid else str(self._cuda.current_device())
        driver, found = state.read(index, self._ask)
        self._cuda.synchronize()
        if here.gpu.before is None:
            return replace(here, gpu=replace(here.gpu, driver=driver, before=found))
        return replace(here, gpu=replace(here.gpu, after=found))


def doubts(gpu: Gpu) -> list[str]:
    """What `state.warnings` says of a run."""
    before, after = (None if s is None else asdict(s) for s in (gpu.before, gpu.after))
    return state.warnings(before, after)
