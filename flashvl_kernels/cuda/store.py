"""A folder of compiled kernels that several processes may fill and read at once.

An entry is one file: a line with the hash of the rest, then the rest. It is written beside its
place and moved there, so a reader finds it whole or not at all; one that a full disk or a crash has
cut short fails its hash and counts as absent.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

VARIABLE = "FLASHVL_CUDA_CACHE"


def folder() -> Path:
    """FLASHVL_CUDA_CACHE, or flashvl-kernels/cuda below the user's cache folder."""
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named)
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "flashvl-kernels" / "cuda"


def key(*parts: str) -> str:
    """The name of an entry: a hash over `parts`, none of which runs into the next."""
    total = hashlib.sha256()
    for part in parts:
        total.update(len(part).to_bytes(8, "little") + part.encode())
    return total.hexdigest()[:32]


def load(name: str) -> bytes | None:
    """The entry, or None where there is none, or not a whole one."""
    try:
        head, _, data = (folder() / name).read_bytes().partition(b"\n")
    except OSError:
        return None
    return data if head == _hash(data) else None


def save(name: str, data: bytes) -> None:
    """Write an entry. A folder that cannot be written to costs a compilation a process, no more."""
    partial = None
    try:
        folder().mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(prefix=f".{name}.", dir=folder())
        with os.fdopen(handle, "wb") as file:
            file.write(_hash(data) + b"\n" + data)
        os.replace(partial, folder() / name)
    except OSError:
        if partial is not None:
            Path(partial).unlink(missing_ok=True)


def _hash(data: bytes) -> bytes:
    return hashlib.sha256(data).hexdigest().encode()
