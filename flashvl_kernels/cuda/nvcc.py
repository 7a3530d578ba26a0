"""Compiles the kernels of one op with nvcc, all instances in one unit."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flashvl_kernels.cuda import plan_module, sources


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


def compile(op: str, into: Path, flags: Sequence[str]) -> Compiled:
    """Every instance of `op` into the file `into`, whose suffix (.cubin, .fatbin) says what it is.

    flags: the architectures and whatever else this file should have.
    """
    plan = plan_module(op)
    if plan is None:
        raise NvccError(f"{op} has no CUDA kernel; see the table in docs/ops.md")
    instances = plan.instances()
    lines = [f"template __global__ void {i.expression}({i.arguments});" for i in instances]
    unit = into.with_suffix(".cu")
    unit.write_text(
        f'#include "{op}.cuh"\nnamespace flashvl::cuda {{\n' + "\n".join(lines) + "\n}\n"
    )
    done = subprocess.run(
        [
            *(path(), "-std=c++17", *flags, f"--{into.suffix[1:]}", "-Xptxas", "-v"),
            *("-I", str(sources.folder()), str(unit), "-o", str(into)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise NvccError(f"csrc/cuda/{op}.cuh does not compile:\n{done.stderr[-4000:]}")
    report = demangled(done.stderr)
    entries = dict(zip(_kernels(report), _kernels(done.stderr), strict=True))
    missing = {instance.expression for instance in instances} - set(entries)
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
