"""Where the kernels' sources are: beside this file in a wheel, in csrc/cuda of a checkout."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

PACKAGED = Path(__file__).resolve().parent / "csrc"
CHECKOUT = Path(__file__).resolve().parents[2] / "csrc" / "cuda"


@cache
def folder() -> Path:
    """The folder of the .cuh files. Raises FileNotFoundError where the installation lost them."""
    for place in (PACKAGED, CHECKOUT):
        if (place / "base.cuh").is_file():
            return place
    raise FileNotFoundError(
        f"the CUDA sources are neither in {PACKAGED} nor in {CHECKOUT}; reinstall flashvl-kernels"
    )


@cache
def digest() -> str:
    """A hash over every source: a change of one makes all compiled kernels stale."""
    total = hashlib.sha256()
    for path in sorted(folder().rglob("*.cuh")):
        text = path.read_bytes()
        total.update(f"{path.relative_to(folder())} {len(text)}\n".encode() + text)
    return total.hexdigest()
