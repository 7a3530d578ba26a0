"""Compiles what the Triton launchers launch, for GPUs that are not here; reads the machine code.

A launch is recorded, not declared: the launcher of an op runs on meta tensors of its `bench`
samples while `launch.describe` answers as the target would, so that what is compiled has the block
sizes, the warps and the argument specialisations of a real call. A new op is covered by having
bench samples; the `EXPECT` table of its kernel file says what its code must show.

    python tests/aot/triton_compile.py            # prints what differs from the budget
    python tests/aot/triton_compile.py --write    # writes tests/aot/triton_budget.json
    python tests/aot/triton_compile.py --all [op ...]    # every bench sample for every target:
                                                         # twice the kernels; prints what falls
                                                         # short of EXPECT, or spills
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

import flashvl_kernels  # noqa: F401  (registers the ops)
from flashvl_kernels import gpu
from flashvl_kernels import triton as backend
from flashvl_kernels.spec import REGISTRY, Maker, OpSpec, capture

BUDGET = Path(__file__).with_name("triton_budget.json")

# A GPU of each architecture.
GPUS = (gpu.A100, gpu.RTX_3090, gpu.L40S, gpu.H100, gpu.B200, gpu.RTX_5090, gpu.MI250X, gpu.MI300X)
TARGETS = {device.arch: device for device in GPUS}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True, order=True)
class Job:
    """One call to compile: an op's bench sample, by name, in a dtype, for a target."""

    op: str
    sample: str
    dtype: str
    arch: str


def jobs(spec: OpSpec) -> list[Job]:
    """The first bench sample everywhere in bf16; the other dtypes and samples on an H100 only."""
    names = [sample.name for sample in spec.samples if sample.kind == "bench"]
    found = [Job(spec.name, names[0], "bf16", arch) for arch in TARGETS]
    found += [Job(spec.name, names[0], dtype, "sm_90") for dtype in ("fp16", "fp32")]
    return found + [Job(spec.name, name, "bf16", "sm_90") for name in names[1:]]


def every_job(spec: OpSpec) -> list[Job]:
    """Every bench sample on every target, in bf16."""
    names = [sample.name for sample in spec.samples if sample.kind == "bench"]
    return [Job(spec.name, name, "bf16", arch) for name in names for arch in TARGETS]


class MetaMaker(Maker):
    """Tensors with shapes and no memory: a full-size call costs nothing to describe."""

    def normal(
        self, *shape: int, scale: float = 1.0, mean: float = 0.0, dtype: torch.dtype | None = None
    ) -> Tensor:
        return torch.empty(shape, dtype=dtype or self.dtype, device="meta")

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.int64, device="meta")

    def image(self, height: int, width: int) -> Tensor:
        return torch.empty(height, width, 3, dtype=torch.uint8, device="meta")


@dataclass
class Launch:
    """A recorded launch: the kernel and its arguments as the launcher gave them."""

    kernel: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def record(job: Job) -> list[Launch]:
    """The launches of the job's call, in order. Raises where the kernel refuses the call."""
    spec = REGISTRY[job.op]
    (sample,) = (s for s in spec.samples if s.kind == "bench" and s.name == job.sample)
    built = sample.make(MetaMaker(DTYPES[job.dtype], "meta"))
    args, kwargs = tree_map_only(Tensor, lambda t: t.to("meta"), (built.args, built.kwargs))
    return launches(job.op, capture(spec.function, *args, **kwargs)[1], job.arch)


def launches(op: str, flat: tuple[Any, ...], arch: str) -> list[Launch]:
    """What a call with schema arguments on the meta device launches, on a GPU of `arch`."""
    from triton.runtime.jit import JITFunction

    kernels = backend.module(op)
    refused = kernels.why_not(*flat)
    if refused is not None:
        raise AssertionError(f"{op} for {arch} is not supported: {refused}")
    found: list[Launch] = []

    def run(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        found.append(Launch(kernel, args, kwargs))

    device = TARGETS[arch]
    with (
        mock.patch.object(JITFunction, "run", run),
        mock.patch("flashvl_kernels.triton.launch.describe", lambda _: device),
    ):
        kernels.run(*flat)
    return found


def build(launch: Launch, arch: str) -> Any:
    """The compiled kernel of a launch."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler.compiler import ASTSource, make_backend
    from triton.runtime.jit import create_function_from_signature

    device = TARGETS[arch]
    kind = "hip" if device.amd else "cuda"
    target = GPUTarget(kind, arch if device.amd else device.capability, device.warp)
    code = make_backend(target)
    kernel = launch.kernel
    binder = create_function_from_signature(kernel.signature, kernel.params, code)
    bound, specialization, options = binder(*launch.args, **launch.kwargs)
    packed = kernel._pack_args(code, launch.kwargs, bound, specialization, options)
    options, signature, constexprs, attrs = packed
    source = ASTSource(kernel, signature, constexprs, attrs)
    return triton.compile(source, target=target, options=options.__dict__)


# ---- reading machine code ----------------------------------------------------------------------

_PTX_ACCESS = re.compile(r"\b(?:ld|st)\.global(?:\.[\w:]+)*")
_PTX_WIDE = re.compile(r"\.v4\.\w32|\.v2\.\w64|\.v8\.\w32|\.v4\.\w64|\.b128")
_PTX_ASYNC = re.compile(r"cp\.async\.c[ag]\.shared\S*\.global.*?, (0x\w+|\d+)")
_AMD_ACCESS = re.compile(r"\b(?:global|buffer)_(?:load|store)_(\w+)")
_MATRIX = re.compile(r"\b(mma\.sync|wgmma\.mma_async|tcgen05\.mma|v_mfma|v_smfmac)")


def read_ptx(compiled: Any) -> dict[str, Any]:
    """Registers, stack and accesses of a cubin and its PTX."""
    text = compiled.asm["ptx"]
    found = [m[0] for m in _PTX_ACCESS.finditer(text)]
    wide = sum(bool(_PTX_WIDE.search(access)) for access in found)
    copies = [int(m[1], 0) for m in _PTX_ASYNC.finditer(text)]
    narrow = len(found) - wide + sum(size < 16 for size in copies)
    usage = _resource_usage(compiled.asm["cubin"])
    # Nothing else of ours lives on the stack, so that any stack or local memory is a spill.
    spilled = usage["STACK"] + usage["LOCAL"]
    return {
        "registers": usage["REG"],
        "spilled_bytes": spilled,
        "wide": wide + sum(size >= 16 for size in copies),
        "narrow": narrow,
        "matrix": _matrix(text),
    }


def _resource_usage(cubin: bytes) -> dict[str, int]:
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}


def read_amdgcn(compiled: Any) -> dict[str, Any]:
    """Registers, spills and accesses of an AMD kernel."""
    text = compiled.asm["amdgcn"]
    found = [m[1] for m in _AMD_ACCESS.finditer(text)]
    wide = sum("x4" in access or "b128" in access for access in found)
    facts = {key: int(value) for key, value in re.findall(r"\.(\w+_count):\s+(\d+)", text)}
    return {
        "registers": facts["vgpr_count"],
        "spilled_bytes": 4 * (facts["vgpr_spill_count"] + facts["sgpr_spill_count"]),
        "wide": wide,
        "narrow": len(found) - wide,
        "matrix": _matrix(text),
    }


def _matrix(text: str) -> str:
    kinds = sorted({m[1] for m in _MATRIX.finditer(text)})
    return "+".join(kinds)


Facts = dict[str, dict[str, Any]]


def compile_job(job: Job) -> Facts:
    """What each distinct kernel of the call became: {kernel: facts}, in order of launch."""
    facts: Facts = {}
    seen: dict[str, set[str]] = {}
    for launch in record(job):
        compiled = build(launch, job.arch)
        name = launch.kernel.__name__
        digests = seen.setdefault(name, set())
        if compiled.hash in digests:
            continue
        digests.add(compiled.hash)
        key = name if len(digests) == 1 else f"{name} {len(digests)}"
        read = read_amdgcn if TARGETS[job.arch].amd else read_ptx
        warps, shared = compiled.metadata.num_warps, compiled.metadata.shared
        facts[key] = {"warps": warps, "shared": shared, **read(compiled)}
    return facts


def shortcoming(job: Job, kernel: str, facts: dict[str, Any]) -> str | None:
    """What a kernel of the job does not show of what its file expects; None where it shows all."""
    expect = backend.module(job.op).EXPECT[kernel.split()[0]]
    if facts["spilled_bytes"] and not TARGETS[job.arch].amd:
        return "spills"
    if expect.wide_access and (facts["wide"] == 0 or facts["narrow"] > expect.narrow):
        return "has narrow accesses"
    # fp32 products stay exact: no tensor core has full fp32 inputs.
    if expect.tensor_cores and job.dtype != "fp32" and not facts["matrix"]:
        return "uses no tensor core"
    return None


# ---- the budget --------------------------------------------------------------------------------


class Compilers:
    """A pool of compiling processes; one op's jobs are started when they are first asked for."""

    def __init__(self) -> None:
        workers = min(4, os.cpu_count() or 1)
        self._pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))

    def start(
        self, spec: OpSpec, wanted: Callable[[OpSpec], list[Job]] = jobs
    ) -> dict[Job, Future[Facts]]:
        return {job: self._pool.submit(compile_job, job) for job in wanted(spec)}

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


def entry(job: Job) -> str:
    """The key of a job's facts in the budget, under its op."""
    return f"{job.sample}, {job.dtype}, {job.arch}"


def claimed() -> Iterator[OpSpec]:
    """The ops that have a Triton kernel."""
    return (spec for spec in REGISTRY.values() if "triton" in spec.kernels)


def dump(ops: dict[str, dict[str, Facts]]) -> str:
    """The budget file: a line for each job, so that a change shows as one."""
    blocks = []
    for op, found in ops.items():
        lines = [f"   {json.dumps(key)}: {json.dumps(facts)}" for key, facts in found.items()]
        blocks.append(f"  {json.dumps(op)}: {{\n" + ",\n".join(lines) + "\n  }")
    body = ",\n".join(blocks)
    return f'{{\n "triton": {json.dumps(backend.version())},\n "ops": {{\n{body}\n }}\n}}\n'


def compile_all(names: list[str]) -> int:
    """Compile every bench sample of some ops, or of all, for every target; prints the kernels that
    fall short, and returns 1 if one does."""
    compilers = Compilers()
    started = [
        compilers.start(spec, every_job) for spec in claimed() if not names or spec.name in names
    ]
    compiled, short = 0, []
    for found in started:
        for job, future in found.items():
            for name, facts in future.result().items():
                compiled += 1
                lacks = shortcoming(job, name, facts)
                if lacks is not None:
                    short.append(f"{job.op}, {entry(job)}, {name} {lacks}: {facts}")
    compilers.close()
    print("\n".join((*short, f"{compiled} kernels, {len(short)} fall short")))
    return 1 if short else 0


def main() -> int:
    """Compile everything; write the budget, or print what differs from it and return 1."""
    if sys.argv[1:2] == ["--all"]:
        return compile_all(sys.argv[2:])
    compilers = Compilers()
    started = {spec.name: compilers.start(spec) for spec in claimed()}
    ops = {
        op: {entry(job): future.result() for job, future in found.items()}
        for op, found in sorted(started.items())
    }
    compilers.close()
    if "--write" in sys.argv:
        BUDGET.write_text(dump(ops))
        return 0
    known = json.loads(BUDGET.read_text())["ops"]
    stale = [
        f"{op}, {key}: {facts}"
        for op, found in ops.items()
        for key, facts in found.items()
        if known.get(op, {}).get(key) != facts
    ]
    print("\n".join(stale) or "as in the budget")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
