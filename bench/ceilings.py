"""What the machine can do at most, measured in the process that measures the kernels.

Three ceilings: streaming read (the sum of a large buffer), copy (bytes read plus bytes written)
and, per dtype, the rate of PyTorch's GEMM. Each is the best of several calls, because interference
only ever slows a call down. With them a call has a least time, as in the roofline model (Williams,
Waterman, Patterson, CACM 2009), and a kernel reaches a fraction of the ceiling: that over its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from flashvl_kernels.spec import Cost

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
NAMES = {dtype: name for name, dtype in DTYPES.items()}

SMALLEST_GEMM, LARGEST_GEMM = 128, 2048


@dataclass(frozen=True)
class Ceilings:
    """Bytes a second (read, copy) and FLOP/s of a GEMM per dtype, with this many threads."""

    read: float
    copy: float
    gemm: dict[str, float]
    threads: int

    def compute(self, dtype: str) -> float:
        """FLOP/s in `dtype`: its own GEMM's, or fp32's where that is faster, since a kernel may
        always widen (without bf16 instructions, PyTorch's bf16 GEMM is far below fp32's)."""
        return max(self.gemm[dtype], self.gemm["fp32"])

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
        return (
            f"read {self.read / 1e9:.3g} GB/s, copy {self.copy / 1e9:.3g} GB/s, "
            f"GEMM {rates} GFLOP/s, {self.threads} threads"
        )


def measure(cache_bytes: int, quick: bool = False) -> Ceilings:
    """Measure all ceilings with the threads PyTorch is set to: about 3 seconds, quick 1."""
    seconds = 0.2 if quick else 0.6
    count = max(8 * cache_bytes, 128 << 20) // 4
    source, target = torch.ones(count), torch.zeros(count)
    with torch.no_grad():
        read = source.nbytes / _best(source.sum, seconds)
        copy = 2 * source.nbytes / _best(lambda: target.copy_(source), seconds)
        gemm = {name: _gemm(dtype, seconds) for name, dtype in DTYPES.items()}
    return Ceilings(read, copy, gemm, torch.get_num_threads())


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
