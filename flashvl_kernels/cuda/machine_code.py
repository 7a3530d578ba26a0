"""What is in the machine code of a kernel, by NVIDIA's disassembler: no GPU is needed."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# LDGSTS is cp.async, which reads global memory and writes shared memory.
_LOCAL = re.compile(r"\b(?:LDL|STL)\b")
_GENERIC = re.compile(r"\b(?:LD|ST|ATOM)\.E\b")
_PRODUCT = re.compile(r"\b(?:[HIBDQ]G?MMA|UTC\w*MMA)\b")
_GLOBAL = re.compile(r"\b(LDGSTS|LDG|STG)\b([.\w]*)")
_WIDTHS = {"256": 32, "128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
_WORD = 4


@dataclass(frozen=True)
class Code:
    """Of one kernel. products: instructions for tensor cores. load_bytes, store_bytes: the widest
    access of a thread to global memory, 0 without one; a copy to shared memory is a load. local:
    accesses to local memory. generic: accesses whose memory the compiler does not know."""

    products: int
    load_bytes: int
    store_bytes: int
    local: int
    generic: int


def binary_tool(name: str) -> str | None:
    """nvdisasm or cuobjdump of the toolkit, or the one that comes with Triton, or None."""
    found = shutil.which(name)
    triton = importlib.util.find_spec("triton")
    if found is None and triton is not None and triton.origin is not None:
        bundled = Path(triton.origin).parent / "backends" / "nvidia" / "bin" / name
        return str(bundled) if bundled.is_file() else None
    return found


def read(cubin: bytes) -> dict[str, Code]:
    """Every kernel of a cubin, by its (mangled) name in it."""
    tool = binary_tool("nvdisasm")
    if tool is None:
        raise RuntimeError("nvdisasm is neither on PATH nor in Triton: pip install triton")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [tool, "-c", file.name], capture_output=True, text=True, check=True
        ).stdout
    return {name: code_of(body) for name, body in _kernels(text)}


def _kernels(text: str) -> Iterator[tuple[str, str]]:
    for part in re.split(r"^\.text\.", text, flags=re.MULTILINE)[1:]:
        name, _, body = part.partition(":")
        yield name, body


def code_of(text: str) -> Code:
    """What the disassembly of one kernel has in it."""
    widest = {"load": 0, "store": 0}
    for kind, modifiers in _GLOBAL.findall(text):
        bytes_moved = next((_WIDTHS[m] for m in modifiers.split(".") if m in _WIDTHS), _WORD)
        way = "store" if kind == "STG" else "load"
        widest[way] = max(widest[way], bytes_moved)
    return Code(
        len(_PRODUCT.findall(text)),
        widest["load"],
        widest["store"],
        len(_LOCAL.findall(text)),
        len(_GENERIC.findall(text)),
    )
