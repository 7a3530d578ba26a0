"""Compiles the kernels of one op with nvcc, all instances in one unit.

More than half of nvcc's time goes into PTX. The sources tell only FAMILIES of architectures apart,
so those of one share their PTX.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flashvl_kernels.cuda import plan_module, sources
from flashvl_kernels.cuda.launch import Instance

FAMILIES = (80, 100)
"""The oldest architecture of each: what csrc/cuda compares __CUDA_ARCH__ with."""


class NvccError(RuntimeError):
    """nvcc is missing or refused a kernel; the text says why and what to do."""


@dataclass(frozen=True)
class Compiled:
    """image: the file nvcc wrote. entries: the name in it of every instance, by its expression.
    report: what ptxas said of each kernel, with its name demangled."""

    image: bytes
    entries: dict[str, str]
    report: str


def path() -> str:
    """The compiler. Raises NvccError where it is not on PATH."""
    found = shutil.which("nvcc")
    if found is None:
        raise NvccError("nvcc is not on PATH; install the CUDA toolkit 12.8 or newer")
    return found


def release() -> str:
    """Such as "13.0"."""
    done = subprocess.run([path(), "--version"], capture_output=True, text=True, check=True)
    found = re.search(r"release (\d+\.\d+)", done.stdout)
    return found[1] if found else "unknown"


def families(architectures: Sequence[int]) -> dict[int, list[int]]:
    """The architectures, ascending, by their families. Raises ValueError for one older than all."""
    found: dict[int, list[int]] = {}
    for architecture in sorted(set(architectures)):
        older = [family for family in FAMILIES if family <= architecture]
        if not older:
            need = f"kernels need sm_{FAMILIES[0]} or newer"
            raise ValueError(f"sm_{architecture} is too old: {need}")
        found.setdefault(older[-1], []).append(architecture)
    return found


def fat_binary(op: str, folder: Path, architectures: Sequence[int]) -> Compiled:
    """Every instance of `op` as machine code of the architectures and PTX of the newest family."""
    grouped = families(architectures)
    codes = {family: [f"sm_{a}" for a in own] for family, own in grouped.items()}
    newest = max(codes)
    codes[newest].append(f"compute_{newest}")
    flags = [f"-gencode=arch=compute_{f},code=[{','.join(own)}]" for f, own in codes.items()]
    return _compiled(op, _unit(op, folder), folder / f"{op}.fatbin", flags)


@dataclass(frozen=True)
class Ptx:
    """Every instance of `op` in the PTX of a family, in a file."""

    op: str
    path: Path

    def cubin(self, architecture: int) -> Compiled:
        """The machine code of an architecture of the family, as a fat binary holds it."""
        into = self.path.with_suffix(f".sm_{architecture}.cubin")
        return _compiled(self.op, self.path, into, [f"-arch=sm_{architecture}"])


def ptx(op: str, folder: Path, family: int) -> Ptx:
    """Every instance of `op` as the PTX of a family."""
    into = folder / f"{op}.compute_{family}.ptx"
    _run(op, _unit(op, folder), into, [f"-arch=compute_{family}"])
    return Ptx(op, into)


def _unit(op: str, folder: Path) -> Path:
    """A source in `folder` that asks for every instance of `op`."""
    lines = [f"template __global__ void {i.expression}({i.arguments});" for i in _instances(op)]
    unit = folder / f"{op}.cu"
    unit.write_text(
        f'#include "{op}.cuh"\nnamespace flashvl::cuda {{\n' + "\n".join(lines) + "\n}\n"
    )
    return unit


def _instances(op: str) -> tuple[Instance, ...]:
    plan = plan_module(op)
    if plan is None:
        raise NvccError(f"{op} has no CUDA kernel; see the table in docs/ops.md")
    return tuple(plan.instances())


def _run(op: str, source: Path, into: Path, flags: Sequence[str]) -> str:
    """Compile `source` into a file whose suffix (.ptx, .cubin, .fatbin) says what it is; what ptxas
    reported."""
    done = subprocess.run(
        [
            *(path(), "-std=c++17", *flags, f"-{into.suffix[1:]}", "-Xptxas", "-v"),
            *("-I", str(sources.folder()), str(source), "-o", str(into)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise NvccError(f"csrc/cuda/{op}.cuh does not compile:\n{done.stderr[-4000:]}")
    return done.stderr


def _compiled(op: str, source: Path, into: Path, flags: Sequence[str]) -> Compiled:
    mangled = _run(op, source, into, flags)
    report = demangled(mangled)
    entries = dict(zip(_kernels(report), _kernels(mangled), strict=True))
    missing = {instance.expression for instance in _instances(op)} - set(entries)
    if missing:
        raise NvccError(f"{op}: ptxas reports no kernel called {', '.join(sorted(missing))}")
    return Compiled(into.read_bytes(), entries, report)


def _kernels(report: str) -> list[str]:
    """The kernels of ptxas's report, in its order; demangled ones as instances are called."""
    found = re.findall(r"Compiling entry function '(.*)' for '", report)
    return [
        name.split("(")[0].removeprefix("void ").replace("flashvl::cuda::", "") for name in found
    ]


def demangled(text: str) -> str:
    """`text` with readable names. Raises NvccError without binutils or the toolkit's own tool."""
    tool = shutil.which("c++filt") or shutil.which("cu++filt")
    if tool is None:
        raise NvccError("neither c++filt nor cu++filt is on PATH; install binutils")
    return subprocess.run([tool], input=text, capture_output=True, text=True, check=True).stdout
