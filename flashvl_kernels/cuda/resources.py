"""Registers, shared memory and spills of every CUDA kernel, as ptxas reports them.

`python -m flashvl_kernels.cuda.resources` writes tests/aot/budget.json anew, which a test compares;
it needs nvcc and a checkout of the repository, and no GPU.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from flashvl_kernels.cuda import kernels_of, plan_module
from flashvl_kernels.cuda.device import ARCHITECTURES

ROOT = Path(__file__).resolve().parents[2]
BUDGET = ROOT / "tests" / "aot" / "budget.json"


@dataclass(frozen=True)
class Resources:
    """Of one kernel: registers a thread, static shared bytes a block; spilled and stack bytes a
    thread, both local memory."""

    registers: int
    shared_bytes: int
    spilled_bytes: int
    stack_bytes: int


def nvcc() -> str | None:
    """The compiler's path, or None where it is not on PATH."""
    return shutil.which("nvcc")


def nvcc_release() -> str:
    """Such as "13.0"; empty without nvcc."""
    compiler = nvcc()
    if compiler is None:
        return ""
    done = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True)
    found = re.search(r"release (\d+\.\d+)", done.stdout)
    return found[1] if found else ""


def ops() -> list[str]:
    """Every op with CUDA kernels of its own."""
    return sorted(
        path.stem
        for path in (ROOT / "csrc" / "cuda").glob("*.cuh")
        if plan_module(path.stem) is not None and kernels_of(path.stem) == path.stem
    )


def compile_op(op: str, architecture: int) -> dict[str, Resources]:
    """Compile every instance of `op` for sm_<architecture>; what each takes, by its expression."""
    plan, compiler = plan_module(op), nvcc()
    if plan is None or compiler is None:
        raise RuntimeError(f"resources: {op} has no plan, or nvcc is not on PATH")
    lines = "\n".join(
        f"template __global__ void {i.expression}({i.arguments});" for i in plan.instances()
    )
    source = f'#include "{op}.cuh"\nnamespace flashvl::cuda {{\n{lines}\n}}\n'
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{op}.cu"
        path.write_text(source)
        command = [
            compiler, "-std=c++17", f"-arch=sm_{architecture}", "-cubin", "-Xptxas", "-v", "-I",
            str(ROOT / "csrc" / "cuda"), str(path), "-o", str(path.with_suffix(".cubin")),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"resources: csrc/cuda/{op}.cuh does not compile:\n{done.stderr}")
    found = _parse(_demangled(done.stderr))
    if len(found) != len(plan.instances()):
        raise RuntimeError(f"resources: {op} has {len(found)} kernels in ptxas's report")
    return found


def _demangled(text: str) -> str:
    tool = shutil.which("c++filt") or shutil.which("cu++filt")
    if tool is None:
        raise RuntimeError("resources: neither c++filt nor cu++filt is on PATH; install binutils")
    return subprocess.run([tool], input=text, capture_output=True, text=True, check=True).stdout


def _parse(text: str) -> dict[str, Resources]:
    """ptxas's lines: an entry's name, its stack and spills, its registers and shared memory."""
    found = {}
    for entry in re.split(r"Compiling entry function '", text)[1:]:
        name = entry.split("(")[0].removeprefix("void ").replace("flashvl::cuda::", "")
        stack = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores", entry)
        registers = re.search(r"Used (\d+) registers", entry)
        shared = re.search(r"(\d+) bytes smem", entry)
        if stack is None or registers is None:
            raise RuntimeError(f"resources: cannot read ptxas's report of {name}: {entry[:400]}")
        found[name] = Resources(
            int(registers[1]), int(shared[1]) if shared else 0, int(stack[2]), int(stack[1])
        )
    return found


def measure(op: str) -> dict[str, dict[str, list[int]]]:
    """{sm: {kernel: [registers, shared bytes]}}; raises where a kernel uses local memory."""
    table: dict[str, dict[str, list[int]]] = {}
    for architecture in ARCHITECTURES:
        rows = {}
        for name, used in sorted(compile_op(op, architecture).items()):
            if used.spilled_bytes or used.stack_bytes:
                where = f"{name} on sm_{architecture}"
                raise RuntimeError(f"resources: {where} uses local memory: {used}")
            rows[name] = [used.registers, used.shared_bytes]
        table[f"sm_{architecture}"] = rows
    return table


def main() -> int:
    """Write the budget of the ops named on the command line, or of all."""
    budget = json.loads(BUDGET.read_text()) if BUDGET.is_file() else {}
    budget["nvcc"] = nvcc_release()
    for op in sys.argv[1:] or ops():
        budget[op] = measure(op)
    BUDGET.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(dict(sorted(budget.items())), indent=1)
    # A kernel a line: the two numbers side by side.
    text = re.sub(r"\[\s+(\d+),\s+(\d+)\s+\]", r"[\1, \2]", text)
    BUDGET.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
