"""Theoretical occupancy against figures of NVIDIA's calculator, and against its header itself."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from flashvl_kernels.cuda.device import A100, B200, H100, L4, RTX_4090, Device
from flashvl_kernels.cuda.occupancy import Occupancy, occupancy

KIB = 1024

# threads, registers, bytes of shared memory, GPU -> blocks, warps, of all warps, what limits
KNOWN = [
    (256, 32, 0, A100, Occupancy(8, 64, 1.0, "threads")),
    (32, 32, 0, A100, Occupancy(32, 32, 0.5, "blocks")),
    (32, 32, 0, L4, Occupancy(24, 24, 0.5, "blocks")),
    (256, 32, 0, RTX_4090, Occupancy(6, 48, 1.0, "threads")),
    (128, 168, 0, H100, Occupancy(3, 12, 0.1875, "registers")),
    (128, 255, 0, H100, Occupancy(2, 8, 0.125, "registers")),
    (96, 168, 0, H100, Occupancy(4, 12, 0.1875, "registers")),
    (128, 64, 64 * KIB, H100, Occupancy(3, 12, 0.1875, "shared memory")),
    (128, 64, 227 * KIB, B200, Occupancy(1, 4, 0.0625, "shared memory")),
    (128, 64, 228 * KIB, B200, Occupancy(0, 0, 0.0, "shared memory")),
    (1024, 65, 0, H100, Occupancy(0, 0, 0.0, "registers")),
]


@pytest.mark.parametrize(("threads", "registers", "shared", "device", "known"), KNOWN)
def test_known_figures(
    threads: int, registers: int, shared: int, device: Device, known: Occupancy
) -> None:
    assert occupancy(threads, registers, shared, device) == known


PROGRAM = r"""
#include <cstdio>
#include <cuda_occupancy.h>
int main() {
  int major, minor, threads_held, shared_held, shared_most, registers, threads, shared;
  while (scanf("%d %d %d %d %d %d %d %d", &major, &minor, &threads_held, &shared_held, &shared_most,
               &registers, &threads, &shared) == 8) {
    cudaOccDeviceProp device;
    device.computeMajor = major;
    device.computeMinor = minor;
    device.maxThreadsPerBlock = 1024;
    device.maxThreadsPerMultiprocessor = threads_held;
    device.regsPerBlock = device.regsPerMultiprocessor = 65536;
    device.warpSize = 32;
    device.sharedMemPerBlock = 49152;
    device.sharedMemPerMultiprocessor = shared_held;
    device.sharedMemPerBlockOptin = shared_most;
    device.reservedSharedMemPerBlock = 1024;
    device.numSms = 100;
    cudaOccFuncAttributes kernel;
    kernel.maxThreadsPerBlock = 1024;
    kernel.numRegs = registers;
    kernel.maxDynamicSharedSizeBytes = shared_most;
    kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
    kernel.numBlockBarriers = 1;
    cudaOccDeviceState state;
    cudaOccResult found;
    cudaOccError error = cudaOccMaxActiveBlocksPerMultiprocessor(&found, &device, &kernel, &state,
                                                                 threads, shared);
    printf("%d\n", error ? -1 : found.activeBlocksPerMultiprocessor);
  }
}
"""


def headers() -> Path | None:
    """The folder of cuda_occupancy.h: the toolkit's, or the one that comes with Triton."""
    places = []
    compiler = shutil.which("nvcc")
    if compiler is not None:
        places.append(Path(compiler).resolve().parents[1] / "include")
    triton = importlib.util.find_spec("triton")
    if triton is not None and triton.origin is not None:
        places.append(Path(triton.origin).parent / "backends" / "nvidia" / "include")
    return next((place for place in places if (place / "cuda_occupancy.h").is_file()), None)


def test_as_the_header_of_the_toolkit_counts(tmp_path: Path) -> None:
    """Launches of all sizes on each GPU; the header is host code, and needs none."""
    folder, compiler = headers(), shutil.which(os.environ.get("CXX", "g++"))
    if folder is None or compiler is None:
        pytest.skip("needs a C++ compiler and cuda_occupancy.h, of the CUDA toolkit or of Triton")
    source, program = tmp_path / "occupancy.cpp", tmp_path / "occupancy"
    source.write_text(PROGRAM)
    subprocess.run([compiler, f"-I{folder}", str(source), "-o", str(program)], check=True)
    launches = [
        (threads, registers, shared, device)
        for device in (A100, L4, H100, B200)
        for registers in (16, 28, 32, 36, 40, 64, 80, 96, 128, 168, 222, 255)
        for threads in (32, 64, 96, 128, 192, 256, 512, 1024)
        for shared in (0, 1, 1024, 9 * KIB, 17 * KIB, 33 * KIB, 65 * KIB, 99 * KIB)
    ]
    lines = [
        f"{d.capability // 10} {d.capability % 10} {d.threads_per_multiprocessor} "
        f"{d.shared_bytes_per_multiprocessor} {d.shared_bytes_per_block} {registers} {threads} "
        f"{shared}\n"
        for threads, registers, shared, d in launches
    ]
    done = subprocess.run(
        [str(program)], input="".join(lines), capture_output=True, text=True, check=True
    )
    counted = [int(line) for line in done.stdout.split()]
    assert counted == [occupancy(*launch).blocks for launch in launches]
