"""The C++ extension: loaded once at import, and never a reason for the import to fail.

`EXTENSION` says whether it is there and, where it is not, exactly why; the torch backend runs
everything in that case. `flashvl-kernels doctor` prints the same and what to do.

FLASHVL_EXTENSION=<path> loads another build of the library (a sanitizer build, say).
FLASHVL_CPU_LEVEL=scalar|avx2|avx512|avx512_bf16|amx caps the instruction-set level; see
csrc/cpu/dispatch.
"""

from __future__ import annotations

import json
import os
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

LIBRARY = "libflashvl_kernels.so"
RECORD = "_build.json"
MINIMUM_TORCH = (2, 10)


@dataclass(frozen=True)
class Extension:
    """Whether the library is loaded; `reason` says why not and is empty when it is."""

    loaded: bool
    path: str
    reason: str


def build_record() -> dict[str, Any]:
    """What the install wrote about building the library; empty where it wrote nothing."""
    try:
        record = json.loads((Path(__file__).parent / RECORD).read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _missing(path: Path) -> str:
    if "FLASHVL_EXTENSION" in os.environ:
        return f"FLASHVL_EXTENSION names {path}, which does not exist; correct or unset it"
    record = build_record()
    if record.get("reason"):
        return f"the CPU extension was not built: {record['reason']}"
    if record.get("built"):
        return f"the CPU extension was built, but {path} is missing now; reinstall flashvl-kernels"
    return (
        f"the CPU extension is not built: {path} does not exist; install flashvl-kernels with pip"
    )


def _unloadable(error: Exception) -> str:
    built_for = build_record().get("torch", "an unknown version")
    return (
        f"the library does not load into torch {torch.__version__} (built against {built_for}): "
        f"{str(error).strip().splitlines()[0]}; reinstall flashvl-kernels"
    )


def _load() -> Extension:
    named = os.environ.get("FLASHVL_EXTENSION")
    path = Path(named) if named else Path(__file__).parent / LIBRARY
    release = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if release < MINIMUM_TORCH:
        needed = ".".join(map(str, MINIMUM_TORCH))
        reason = f"torch is {torch.__version__}; the extension needs {needed} or newer"
        return Extension(False, str(path), reason)
    if not path.is_file():
        return Extension(False, str(path), _missing(path))
    try:
        torch.ops.load_library(str(path))
    except (OSError, RuntimeError) as error:
        return Extension(False, str(path), _unloadable(error))
    try:
        torch.ops.flashvl_cpu.level()
    except (ValueError, RuntimeError) as error:
        warnings.warn(f"flashvl_kernels: the CPU kernels are off: {error}", stacklevel=2)
        return Extension(False, str(path), str(error))
    return Extension(True, str(path), "")


EXTENSION = _load()


@cache
def has(op: str) -> bool:
    """The loaded extension has a CPU kernel called `op` (an older build may lack a newer op)."""
    return EXTENSION.loaded and hasattr(torch.ops.flashvl_cpu, op)


def cpu_level() -> str:
    """The instruction-set level of the CPU kernels in use; "none" without the extension."""
    return torch.ops.flashvl_cpu.level() if EXTENSION.loaded else "none"


def available_levels() -> list[str]:
    """The levels this build has and this CPU runs, lowest first: values of FLASHVL_CPU_LEVEL."""
    if not EXTENSION.loaded:
        return []
    return str(torch.ops.flashvl_cpu.available_levels()).split(",")


def cpu_features() -> list[str]:
    """The CPU features the extension looks at and this machine has."""
    if not EXTENSION.loaded:
        return []
    return [name for name in str(torch.ops.flashvl_cpu.features()).split(",") if name]


def advise_huge_pages(memory: torch.Tensor) -> torch.Tensor:
    """Ask for large pages behind a CPU tensor that has just been allocated; returns it.

    Weights are read end to end again and again: csrc/torch/huge_pages.h says what it saves.
    """
    if memory.device.type == "cpu" and has("advise_huge_pages"):
        torch.ops.flashvl_cpu.advise_huge_pages(memory)
    return memory
