"""What a launch plan needs to know of a GPU, and the figures of five of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """name; capability as in sm_90; multiprocessors; per multiprocessor: threads, and bytes of
    shared memory; shared_bytes_per_block: with the opt-in of cudaFuncSetAttribute."""

    name: str
    capability: int
    multiprocessors: int
    threads_per_multiprocessor: int
    shared_bytes_per_multiprocessor: int
    shared_bytes_per_block: int


KIB = 1024

# NVIDIA's data sheets, and the CUDA C++ Programming Guide's table of compute capabilities.
H100 = Device("H100 SXM", 90, 132, 2048, 228 * KIB, 227 * KIB)
A100 = Device("A100", 80, 108, 2048, 164 * KIB, 163 * KIB)
L4 = Device("L4", 89, 58, 1536, 100 * KIB, 99 * KIB)
RTX_4090 = Device("RTX 4090", 89, 128, 1536, 100 * KIB, 99 * KIB)
B200 = Device("B200", 100, 148, 2048, 228 * KIB, 227 * KIB)

DEVICES = (H100, A100, L4, RTX_4090, B200)
ARCHITECTURES = (80, 86, 89, 90, 100, 120)
"""What every kernel is compiled for."""
