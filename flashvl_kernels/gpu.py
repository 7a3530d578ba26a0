"""What the launch plans of both GPU backends start from: the device, and the axes of a tensor.

A plan is a pure function of shapes and a `Device`, so that tests can ask for the plan on a GPU they
do not have, and the compile checks build exactly what a launch would.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

KIB = 1024
VECTOR_BYTES = 16
"""The widest access of one thread to global memory, on every GPU so far."""
LDS = 64 * KIB
"""Shared memory of a block on AMD's GPUs, which PyTorch does not tell."""


@dataclass(frozen=True)
class Device:
    """A GPU.

    capability: 90 for sm_90; 0 on an AMD GPU, whose architecture is `gfx`, such as "gfx942".
    multiprocessors: SMs or compute units, with so many threads and bytes of shared memory (LDS).
    shared_bytes_per_block: with the opt-in of cudaFuncSetAttribute. warp: threads a warp (wave).
    """

    name: str
    capability: int
    multiprocessors: int
    threads_per_multiprocessor: int
    shared_bytes_per_multiprocessor: int
    shared_bytes_per_block: int
    warp: int = 32
    gfx: str = ""

    @property
    def amd(self) -> bool:
        """An AMD GPU, under ROCm."""
        return bool(self.gfx)

    @property
    def arch(self) -> str:
        """What a compiler calls it: "sm_90" or "gfx942"."""
        return self.gfx or f"sm_{self.capability}"


# NVIDIA's data sheets and the CUDA C++ Programming Guide's table of compute capabilities; AMD's
# data sheets: MI250X, one of its two dies, and MI300X.
H100 = Device("H100 SXM", 90, 132, 2048, 228 * KIB, 227 * KIB)
A100 = Device("A100", 80, 108, 2048, 164 * KIB, 163 * KIB)
L4 = Device("L4", 89, 58, 1536, 100 * KIB, 99 * KIB)
L40S = Device("L40S", 89, 142, 1536, 100 * KIB, 99 * KIB)
RTX_3090 = Device("RTX 3090", 86, 82, 1536, 100 * KIB, 99 * KIB)
RTX_4090 = Device("RTX 4090", 89, 128, 1536, 100 * KIB, 99 * KIB)
RTX_5090 = Device("RTX 5090", 120, 170, 1536, 100 * KIB, 99 * KIB)
B200 = Device("B200", 100, 148, 2048, 228 * KIB, 227 * KIB)
MI250X = Device("MI250X", 0, 110, 2048, LDS, LDS, 64, "gfx90a")
MI300X = Device("MI300X", 0, 304, 2048, LDS, LDS, 64, "gfx942")

EMULATED = H100
"""What a tensor off the GPU is launched for, as the tests do."""


@cache
def describe(device: torch.device) -> Device:
    """The GPU behind `device`; the current one, at the first call, where it has no index."""
    if device.type != "cuda":
        return EMULATED
    found = torch.cuda.get_device_properties(device)
    processors, threads = found.multi_processor_count, found.max_threads_per_multi_processor
    if torch.version.hip is not None:
        gfx = str(found.gcnArchName).split(":")[0]
        return Device(found.name, 0, processors, threads, LDS, LDS, found.warp_size, gfx)
    return Device(
        found.name,
        10 * found.major + found.minor,
        processors,
        threads,
        found.shared_memory_per_multiprocessor,
        found.shared_memory_per_block_optin,  # type: ignore[attr-defined]  # in CUDA builds only
        found.warp_size,
    )


@cache
def _several() -> bool:
    return torch.cuda.device_count() > 1


_NOTHING = nullcontext()


def on(device: torch.device) -> AbstractContextManager[object]:
    """Makes `device` the current one. The only GPU of a machine is it already, and to ask for that
    at every call costs as much as a launch plan."""
    if device.type == "cuda" and _several():
        return torch.cuda.device(device)
    return _NOTHING


def ceil_div(number: int, by: int) -> int:
    """number / by, rounded up."""
    return -(-number // by)


def power_of_two(number: int) -> int:
    """The least power of two that is at least `number`."""
    return 1 << max(number - 1, 0).bit_length()


def merged_axes(tensor: Tensor) -> list[tuple[int, int]]:
    """(size, stride) of all axes but the last, outermost first: axes that lie in one another are
    one, and those of size 1 are none. Two are left where a CLS token was dropped."""
    axes: list[tuple[int, int]] = []
    for size, stride in zip(tensor.shape[:-1], tensor.stride()[:-1], strict=True):
        if size == 1:
            continue
        if axes and axes[-1][1] == size * stride:
            axes[-1] = (axes[-1][0] * size, stride)
        else:
            axes.append((size, stride))
    return axes
