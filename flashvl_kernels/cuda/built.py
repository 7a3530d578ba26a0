"""Kernels compiled by nvcc when the package was built (FLASHVL_BUILD_CUDA=1): the extension carries
them, and neither a toolkit nor NVRTC is needed to run.

An archive holds one fat binary an op, and an index. It is compiled with the same sources, plans and
launches as what NVRTC makes; only who compiles differs.

    python -m flashvl_kernels.cuda.built ARCHIVE --arch 80,90

is what a build runs.
"""

from __future__ import annotations

import argparse
import ctypes
import io
import json
import os
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from flashvl_kernels import extension
from flashvl_kernels.cuda import ahead, kernels_of, nvcc, sources
from flashvl_kernels.cuda.device import ARCHITECTURES
from flashvl_kernels.cuda.launch import Instance

INDEX = "index.json"
BEGIN, END = "flashvl_cuda_images_begin", "flashvl_cuda_images_end"
"""The symbols of csrc/torch/cuda_images.cpp."""


class Archive:
    """What was compiled ahead. `architectures` have machine code; GPUs newer than the last of them
    get the PTX of its family."""

    def __init__(self, data: bytes) -> None:
        self._zip = zipfile.ZipFile(io.BytesIO(data))
        index = json.loads(self._zip.read(INDEX))
        self.sources: str = index["sources"]
        self.compiler: str = index["compiler"]
        self.architectures: list[int] = index["architectures"]
        self._entries: dict[str, dict[str, str]] = index["entries"]
        self._images: dict[str, bytes] = {}

    def covers(self, capability: int) -> bool:
        """Whether the kernels run on a GPU of `capability`: 90 for sm_90.

        Machine code runs on later minor versions of its major one, PTX on everything newer.
        """
        same = [a for a in self.architectures if a // 10 == capability // 10 and a <= capability]
        return bool(same) or capability > max(self.architectures)

    def kernel(self, op: str, instance: Instance) -> tuple[bytes, str]:
        """The image of `op`, and the name of `instance` in it."""
        op = kernels_of(op)
        if op not in self._images:
            self._images[op] = self._zip.read(op)
        return self._images[op], self._entries[op][instance.expression]


@cache
def archive() -> Archive | None:
    """That of the loaded extension; None where it has none, or one of other sources than these (an
    edited checkout)."""
    if not extension.EXTENSION.loaded:
        return None
    found = carried(extension.EXTENSION.path)
    return found if found is not None and found.sources == sources.digest() else None


def carried(library: str) -> Archive | None:
    """The archive inside a shared library, or None."""
    loaded = ctypes.CDLL(library)
    try:
        begin, end = (ctypes.addressof(ctypes.c_char.in_dll(loaded, s)) for s in (BEGIN, END))
    except ValueError:  # built without
        return None
    return Archive(ctypes.string_at(begin, end - begin))


def write(path: Path, architectures: Sequence[int], ops: Sequence[str] = ()) -> None:
    """Compile `ops` (all that have CUDA kernels) for `architectures` into an archive.

    Raises nvcc.NvccError where one does not compile, and ValueError for an architecture too old.
    """
    wanted = sorted({op for op, _ in ahead.kernels(ops)})
    with tempfile.TemporaryDirectory() as folder:

        def build(op: str) -> nvcc.Compiled:
            return nvcc.fat_binary(op, Path(folder), architectures)

        with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)) as pool:
            compiled = dict(zip(wanted, pool.map(build, wanted), strict=True))
    index = {
        "sources": sources.digest(),
        "compiler": f"nvcc {nvcc.release()}",
        "architectures": sorted(set(architectures)),
        "entries": {op: made.entries for op, made in compiled.items()},
    }
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(INDEX, json.dumps(index))
        for op, made in compiled.items():
            file.writestr(op, made.image)


def main() -> int:
    """The command of a build; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m flashvl_kernels.cuda.built")
    parser.add_argument("archive", type=Path)
    parser.add_argument("--arch", default=",".join(map(str, ARCHITECTURES)), help="such as 80,90")
    options = parser.parse_args()
    try:
        chosen = [int(name.strip().removeprefix("sm_")) for name in options.arch.split(",")]
        write(options.archive, chosen)
    except (nvcc.NvccError, ValueError) as error:
        print(f"CUDA kernels: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
