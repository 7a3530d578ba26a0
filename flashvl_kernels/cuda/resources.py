"""What every CUDA kernel takes of a GPU, as ptxas reports it, and what its machine code shows.

`python -m flashvl_kernels.cuda.resources [op ...]` writes tests/aot/budget.json anew, which a test
compares; it needs nvcc, nvdisasm and a checkout of the repository, and no GPU. `--launches` writes
only what full-size calls launch, from the registers that are in it, and compiles nothing.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import flashvl_kernels  # noqa: F401  (registers the ops)
from flashvl_kernels.cuda import kernels_of, machine_code, nvcc, plan_module
from flashvl_kernels.cuda.device import ARCHITECTURES, DEVICES, Device
from flashvl_kernels.cuda.launch import Launch
from flashvl_kernels.cuda.machine_code import Code
from flashvl_kernels.cuda.occupancy import occupancy
from flashvl_kernels.shapes import meta_call
from flashvl_kernels.spec import REGISTRY

ROOT = Path(__file__).resolve().parents[2]
BUDGET = ROOT / "tests" / "aot" / "budget.json"

Rows = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Resources:
    """Of one kernel: registers a thread, static shared bytes a block; spilled and stack bytes a
    thread, both local memory."""

    registers: int
    shared_bytes: int
    spilled_bytes: int
    stack_bytes: int


def unavailable() -> str | None:
    """The reason kernels cannot be compiled and read here, or None."""
    if shutil.which("nvcc") is None:
        return "nvcc is not on PATH; install the CUDA toolkit to compile the kernels"
    if machine_code.binary_tool("nvdisasm") is None:
        return "nvdisasm is neither on PATH nor in Triton; install triton to read the kernels"
    return None


def ops() -> list[str]:
    """Every op with a CUDA kernel."""
    return [op for op in sorted(REGISTRY) if plan_module(op) is not None]


def compiled_ops() -> list[str]:
    """Those that have kernels of their own; the others launch these."""
    return [op for op in ops() if kernels_of(op) == op]


def kernels(ptx: nvcc.Ptx, architecture: int) -> dict[str, tuple[Resources, Code]]:
    """What every instance of an op is on an architecture, by its expression."""
    compiled = ptx.cubin(architecture)
    used, code = _parse(compiled.report), machine_code.read(compiled.image)
    return {name: (used[name], code[entry]) for name, entry in compiled.entries.items()}


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


def measure(op: str) -> Rows:
    """The budget of every kernel of an op, by architecture, and under "made from" the seal of each
    family; raises where one uses local memory."""
    budget: Rows = {"made from": {}}
    with tempfile.TemporaryDirectory() as folder:
        for family, architectures in nvcc.families(ARCHITECTURES).items():
            ptx = nvcc.ptx(op, Path(folder), family)
            for architecture in architectures:
                rows = {}
                for name, (used, code) in sorted(kernels(ptx, architecture).items()):
                    if used.spilled_bytes or used.stack_bytes or code.local:
                        where = f"{name} on sm_{architecture}"
                        raise RuntimeError(f"resources: {where} uses local memory: {used}, {code}")
                    rows[name] = budget_of(used, code)
                budget[f"sm_{architecture}"] = rows
            budget["made from"][f"compute_{family}"] = seal(ptx, family, budget)
    return budget


def seal(ptx: nvcc.Ptx, family: int, budget: Rows) -> str:
    """A hash of the PTX of a family, which names its compiler, and of the rows that were made from
    it: both unchanged, ptxas need not be asked again."""
    own = [f"sm_{architecture}" for architecture in nvcc.families(ARCHITECTURES)[family]]
    rows = json.dumps({name: budget[name] for name in own}, sort_keys=True)
    return hashlib.sha256(ptx.path.read_bytes() + rows.encode()).hexdigest()


def budget_of(used: Resources, code: Code) -> dict[str, int]:
    """A kernel's line in the budget."""
    return {
        "registers": used.registers,
        "shared": used.shared_bytes,
        "products": code.products,
        "load": code.load_bytes,
        "store": code.store_bytes,
    }


def typical_launches(op: str, device: Device) -> list[tuple[str, Launch]]:
    """(sample, launch) of every full-size call of `op` in bf16, in order."""
    plan = plan_module(op)
    assert plan is not None
    spec = REGISTRY[op]
    found = []
    for sample in [s for s in spec.samples if s.kind == "bench"]:
        flat = meta_call(spec, sample, torch.bfloat16)
        why_not = spec.kernels["cuda"](*flat) if "cuda" in spec.kernels else None
        if why_not is None:
            found += [(sample.name, launch) for launch in plan.prepare(flat, device).launches]
    return found


def resident(op: str, budget: dict[str, Rows]) -> Rows:
    """The theoretical occupancy of every typical launch, by sample, place in the call and device.

    budget: of the kernels it launches, by architecture.
    """
    rows: Rows = {}
    for device in DEVICES:
        kernels = budget[f"sm_{device.capability}"]
        for sample, launch in typical_launches(op, device):
            kernel = kernels[launch.kernel.expression]
            threads = launch.block[0] * launch.block[1] * launch.block[2]
            shared = kernel["shared"] + launch.shared_bytes
            found = occupancy(threads, kernel["registers"], shared, device)
            place = sum(key.startswith(f"{device.name}, {sample}, ") for key in rows)
            rows[f"{device.name}, {sample}, launch {place}"] = {
                "kernel": launch.kernel.expression,
                "threads": threads,
                "shared": shared,
                **asdict(found),
            }
    return rows


def dump(budget: dict[str, Any]) -> str:
    """The budget file: a line for each kernel and launch, so that a change shows as one."""
    text = json.dumps(dict(sorted(budget.items())), indent=1)
    return re.sub(r"\{\s+(\"\w+\": [^{}]*?)\s+\}", _on_one_line, text) + "\n"


def _on_one_line(found: re.Match[str]) -> str:
    return "{" + re.sub(r"\s*\n\s*", " ", found[1]) + "}"


def main() -> int:
    """Write the budget of the ops named on the command line, or of all."""
    budget = json.loads(BUDGET.read_text()) if BUDGET.is_file() else {}
    named = sys.argv[1:] or compiled_ops()
    if named == ["--launches"]:
        named = []
    else:
        budget["nvcc"] = nvcc.release()
    for op in named:
        budget[op] = measure(op)
        BUDGET.write_text(dump(budget))
    for op in ops():
        launches = resident(op, budget[kernels_of(op)])
        budget[op] = {**budget.get(op, {}), "launches": launches}
    BUDGET.write_text(dump(budget))
    return 0


if __name__ == "__main__":
    sys.exit(main())
