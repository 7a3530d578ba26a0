"""Facts of the machine and the process that a result is meaningless without."""

from __future__ import annotations

import ctypes
import os
import platform
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import flashvl_kernels
from flashvl_kernels import extension

if TYPE_CHECKING:
    from flashvl_bench.gpu.target import Gpu

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
ASSUMED_CACHE = 32 << 20  # where the system does not tell: most desktop parts have less

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # glibc, malloc.h


@dataclass(frozen=True)
class Machine:
    """What the measurements ran on. `cores` are those this process may use; `gpu` is there where
    the measurements ran on one."""

    cpu: str
    cores: int
    threads: int
    cache_bytes: int
    memory_bytes: int
    system: str
    python: str
    torch: str
    flashvl: str
    cpu_level: str
    extension: str
    date: str
    gpu: Gpu | None = None

    def line(self) -> str:
        """The facts on one line."""
        return (
            f"{self.cpu}, {self.cores} cores, {self.threads} threads used, last-level cache "
            f"{self.cache_bytes / 2**20:.3g} MiB, torch {self.torch}, CPU kernels: {self.extension}"
        )


def facts() -> Machine:
    """The facts of this process, now."""
    loaded = extension.EXTENSION.loaded
    return Machine(
        cpu=_cpu_model(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else _count(),
        threads=torch.get_num_threads(),
        cache_bytes=last_level_cache(),
        memory_bytes=memory_bytes(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        torch=torch.__version__,
        flashvl=flashvl_kernels.__version__,
        cpu_level=extension.cpu_level(),
        extension=f"level {extension.cpu_level()}" if loaded else extension.EXTENSION.reason,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def last_level_cache(folder: Path = CACHES) -> int:
    """Bytes of the largest cache the system reports."""
    sizes = []
    for file in folder.glob("index*/size"):
        found = re.fullmatch(r"(\d+)([KMG]?)", file.read_text().strip())
        if found:
            sizes.append(int(found[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[found[2]])
    return max(sizes, default=ASSUMED_CACHE)


def keep_freed_memory() -> bool:
    """Let malloc keep what is freed, so that no call pays for fresh pages; False where it cannot.

    Otherwise glibc maps every result over 32 MiB anew, and the kernel zeroes its pages: the time
    would be the operating system's, not the kernel's.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


def _count() -> int:
    return os.cpu_count() or 1


def memory_bytes() -> int:
    """Bytes of the machine's memory; 0 where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 0
