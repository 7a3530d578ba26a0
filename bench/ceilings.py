"""What the machine can do at most, measured in the process that measures the kernels.

Streaming read, copy (bytes read plus bytes written), and multiply-adds per dtype. The extension has
loops for it that do nothing else (csrc/cpu/peak.cpp): register-resident multiply-adds for each
instruction set of the level in force, and a read of a large buffer. PyTorch's GEMM and sum are
measured too and printed; the larger figure is the ceiling. Each is the best of several calls,
because interference only ever slows a call down. With them a call has a least time, as in the
roofline model (Williams, Waterman, Patterson, CACM 2009), and a kernel reaches a fraction of the
ceiling: that over its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from flashvl_kernels import extension
from flashvl_kernels.spec import Cost

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
NAMES = {dtype: name for name, dtype in DTYPES.items()}

SMALLEST_GEMM, LARGEST_GEMM = 128, 2048

# The loops of csrc/cpu/peak.cpp, and the dtypes whose products each of them can compute. fp16 has
# no loop of its own: its kernels widen.
LOOPS = {
    "fma_f32": ("fp32", "fp16", "bf16"),
    "dot_bf16": ("bf16",),
    "tiles_bf16": ("bf16",),
}

# A pass over at least twice the last-level cache finds none of it there. More would measure the
# same, and some hosts show their guests a cache of half a gigabyte.
CACHES = 2
SMALLEST_BUFFER = 128 << 20
MEMORY_SHARE = 16  # of the machine's memory a buffer takes at most one part in so many


@dataclass(frozen=True)
class Ceilings:
    """Bytes a second (read, copy) and FLOP/s, with this many threads.

    gemm: PyTorch's GEMM per dtype. loops: the register-resident loops of the extension that the
    level in force has; empty without the extension. torch_read: the sum of PyTorch, in bytes a
    second; `read` is the larger of it and the extension's loop.
    """

    read: float
    copy: float
    gemm: dict[str, float]
    threads: int
    loops: dict[str, float]
    torch_read: float

    def compute(self, dtype: str) -> float:
        """FLOP/s in `dtype`: the fastest loop that can compute its products, or a GEMM where
        PyTorch's is faster still; fp32's GEMM counts for all, since a kernel may always widen."""
        loops = [rate for name, rate in self.loops.items() if dtype in LOOPS[name]]
        return max(self.gemm[dtype], self.gemm["fp32"], *loops)

    def least_time(self, cost: Cost, dtype: str) -> tuple[float, str]:
        """The least seconds a call of `cost` can take, and what bounds it: "memory" or "compute".

        Bytes read and bytes written pair up as a copy; bytes read beyond that stream. (Bytes
        written beyond it count as a copy without its read: there is no faster way to write.)
        """
        paired = min(cost.bytes_read, cost.bytes_written)
        alone = cost.bytes_read - paired
        memory = (paired + cost.bytes_written) / self.copy + alone / self.read
        compute = cost.flops / self.compute(dtype)
        return (memory, "memory") if memory >= compute else (compute, "compute")

    def line(self) -> str:
        """The ceilings on one line."""
        rates = ", ".join(f"{name} {rate / 1e9:.3g}" for name, rate in self.gemm.items())
        loops = ", ".join(f"{name} {rate / 1e9:.4g}" for name, rate in self.loops.items())
        return (
            f"read {self.read / 1e9:.3g} GB/s (torch.sum {self.torch_read / 1e9:.3g}), copy "
            f"{self.copy / 1e9:.3g} GB/s, GFLOP/s in registers: {loops or 'no extension'}; "
            f"torch GEMM: {rates}; {self.threads} threads"
        )


def measure(cache_bytes: int, quick: bool = False) -> Ceilings:
    """Measure all ceilings with the threads PyTorch is set to: about 6 seconds, quick 2."""
    seconds = 0.2 if quick else 0.6
    source = torch.ones(buffer_bytes(cache_bytes) // 4)
    target = torch.zeros_like(source)
    with torch.no_grad():
        torch_read = source.nbytes / _best(source.sum, seconds)
        copy = 2 * source.nbytes / _best(lambda: target.copy_(source), seconds)
        gemm = {name: _gemm(dtype, seconds) for name, dtype in DTYPES.items()}
    read = max(torch_read, _stream_read(source, seconds))
    loops = register_loops(seconds)
    return Ceilings(read, copy, gemm, torch.get_num_threads(), loops, torch_read)


def register_loops(seconds: float) -> dict[str, float]:
    """FLOP/s of each loop that the level in force has."""
    if not extension.has("peak"):
        return {}
    rates = {name: float(torch.ops.flashvl_cpu.peak(name, seconds)) for name in LOOPS}
    return {name: rate for name, rate in rates.items() if rate > 0}


def buffer_bytes(cache_bytes: int, memory_bytes: int | None = None) -> int:
    """Bytes to stream so that the last-level cache holds next to nothing of them."""
    from flashvl_bench import machine

    memory = machine.memory_bytes() if memory_bytes is None else memory_bytes
    wanted = max(CACHES * cache_bytes, SMALLEST_BUFFER)
    return min(wanted, max(memory // MEMORY_SHARE, SMALLEST_BUFFER)) // 4096 * 4096


def _stream_read(source: torch.Tensor, seconds: float) -> float:
    if not extension.has("stream_read"):
        return 0.0
    return float(torch.ops.flashvl_cpu.stream_read(source, seconds))


def _gemm(dtype: torch.dtype, seconds: float) -> float:
    """The best rate over growing square matrices, as far as the time allows."""
    best, side = 0.0, SMALLEST_GEMM
    end = time.perf_counter() + seconds
    while side <= LARGEST_GEMM:
        a, b = torch.ones(side, side, dtype=dtype), torch.ones(side, side, dtype=dtype)
        took = _best(partial(torch.matmul, a, b), seconds / 8)
        best = max(best, 2 * side**3 / took)
        # The next size takes eight times as long, three times over.
        if time.perf_counter() + 24 * took > end:
            break
        side *= 2
    return best


def _best(run: Callable[[], object], seconds: float) -> float:
    """The shortest of at least three calls."""
    best, spent, calls = float("inf"), 0.0, 0
    while calls < 3 or spent < seconds:
        start = time.perf_counter()
        run()
        took = time.perf_counter() - start
        best, spent, calls = min(best, took), spent + took, calls + 1
    return best
