"""How many blocks of a kernel a multiprocessor holds at once, as CUDA's calculator counts them.

The rules are those of NVIDIA's cuda_occupancy.h, with which a test compares them. Theoretical: what
fits, not what a launch of few blocks reaches.
"""

from __future__ import annotations

from dataclasses import dataclass

from flashvl_kernels.cuda.device import Device
from flashvl_kernels.cuda.launch import WARP, ceil_div

REGISTERS = 65536
"""Of a multiprocessor, since sm_80."""
REGISTER_UNIT = 256
"""A warp gets its registers in steps of this many."""
PARTITIONS = 4
"""Of a multiprocessor; a warp lives in one, whose registers are a quarter of all."""
SHARED_UNIT = 128
RESERVED_SHARED = 1024
"""Bytes a block that the system keeps for itself."""
MAX_BLOCKS = {80: 32, 86: 16, 89: 24, 90: 32, 100: 32, 120: 24}
"""Blocks of a multiprocessor, by capability."""


@dataclass(frozen=True)
class Occupancy:
    """Of one multiprocessor. limit: what admits no more: blocks, threads, registers or shared
    memory; the first of them in this order. fraction: of the warps it could hold."""

    blocks: int
    warps: int
    fraction: float
    limit: str


def occupancy(threads: int, registers: int, shared_bytes: int, device: Device) -> Occupancy:
    """Of blocks of `threads` threads, `registers` a thread, and static plus dynamic
    `shared_bytes` a block; no blocks at all where one does not fit."""
    warps = ceil_div(threads, WARP)
    of_warp = ceil_div(registers * WARP, REGISTER_UNIT) * REGISTER_UNIT
    of_block = of_warp * ceil_div(warps, PARTITIONS) * PARTITIONS  # as a launch is checked
    at_once = REGISTERS // PARTITIONS // of_warp * PARTITIONS
    shared = ceil_div(shared_bytes + RESERVED_SHARED, SHARED_UNIT) * SHARED_UNIT
    fits = shared_bytes <= device.shared_bytes_per_block
    limits = {
        "blocks": MAX_BLOCKS[device.capability],
        "threads": device.threads_per_multiprocessor // WARP // warps,
        "registers": at_once // warps if of_block <= REGISTERS else 0,
        "shared memory": device.shared_bytes_per_multiprocessor // shared if fits else 0,
    }
    limit = min(limits, key=limits.__getitem__)
    blocks = limits[limit]
    most = device.threads_per_multiprocessor // WARP
    return Occupancy(blocks, blocks * warps, blocks * warps / most, limit)
