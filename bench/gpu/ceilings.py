"""What a GPU can do at most, by PyTorch's own sum, copy and GEMM, in the process of the kernels.

The buffers are more than four times the L2 cache, so that it holds little of them. Each figure is
the best of many calls between two events, queued without a wait in between.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from flashvl_bench.ceilings import DTYPES, Ceilings

CACHES = 4
SMALLEST_BUFFER = 256 << 20
SMALLEST_GEMM, LARGEST_GEMM = 1024, 8192
CALLS, QUICK_CALLS = 40, 10


@dataclass(frozen=True)
class GpuCeilings(Ceilings):
    """`loops` is empty, and `threads` are the host's."""

    def line(self) -> str:
        rates = ", ".join(f"{name} {rate / 1e12:.3g}" for name, rate in self.gemm.items())
        return (
            f"read {self.read / 1e9:.4g} GB/s (torch.sum), copy {self.copy / 1e9:.4g} GB/s, "
            f"torch GEMM in TFLOP/s: {rates}"
        )


def measure(
    cache_bytes: int, quick: bool = False, device: Any = "cuda", cuda: Any = torch.cuda
) -> GpuCeilings:
    """All ceilings of `device`, whose L2 cache has `cache_bytes`."""
    calls = QUICK_CALLS if quick else CALLS
    with torch.no_grad():
        read, copy = _bandwidth(buffer_bytes(cache_bytes), calls, device, cuda)
        gemm = {name: _gemm(dtype, calls, device, cuda) for name, dtype in DTYPES.items()}
    return GpuCeilings(read, copy, gemm, torch.get_num_threads(), {}, read)


def buffer_bytes(cache_bytes: int) -> int:
    """Bytes to stream so that the L2 cache holds next to nothing of them."""
    return max(CACHES * cache_bytes + (1 << 20), SMALLEST_BUFFER) // 4096 * 4096


def _bandwidth(size: int, calls: int, device: Any, cuda: Any) -> tuple[float, float]:
    """Bytes a second of a sum, and of a copy (read plus written)."""
    source = torch.ones(size // 4, device=device)
    target = torch.zeros_like(source)
    read = size / best(source.sum, calls, cuda)
    return read, 2 * size / best(partial(target.copy_, source), calls, cuda)


def best(run: Callable[[], object], calls: int, cuda: Any = torch.cuda) -> float:
    """The shortest of `calls` calls, after one that is not counted; seconds."""
    run()
    pairs = []
    for _ in range(calls):
        start, stop = (cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        stop.record()
        pairs.append((start, stop))
    cuda.synchronize()
    return min(start.elapsed_time(stop) for start, stop in pairs) * 1e-3


def _gemm(dtype: torch.dtype, calls: int, device: Any, cuda: Any) -> float:
    """The best rate over growing square matrices; fp32 is computed in fp32 unless the process
    allows TF32. The matrices are of normal numbers: of ones they would draw less power."""
    rate, side = 0.0, SMALLEST_GEMM
    while side <= LARGEST_GEMM:
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        rate = max(rate, 2 * side**3 / best(partial(torch.matmul, a, b), calls, cuda))
        side *= 2
    return rate


def keep_busy(seconds: float, top: Ceilings, device: Any, size: int) -> None:
    """Queue copies of `size` bytes that take about so long, without waiting for them: what is asked
    of the GPU meanwhile is of a GPU at work, for an idle one lowers its clocks."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    for _ in range(max(int(seconds * top.copy / (2 * size)), 1)):
        target.copy_(source)
