"""`flashvl-kernels compile`: every CUDA kernel into the store before anything needs it, such as
while a container image is built. No GPU is needed."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import flashvl_kernels  # noqa: F401  (registers the ops)
from flashvl_kernels.cuda import kernels_of, nvrtc, plan_module, store
from flashvl_kernels.cuda.launch import Instance
from flashvl_kernels.spec import REGISTRY


def kernels(ops: Sequence[str] = ()) -> list[tuple[str, Instance]]:
    """(op, kernel) of all that launch plans may name; of `ops` only, where some are given. Kernels
    that ops share are there once.

    Raises ValueError for an op without a CUDA kernel.
    """
    found = []
    for op in ops or [op for op in sorted(REGISTRY) if plan_module(op) is not None]:
        plan = plan_module(op) if op in REGISTRY else None
        if plan is None:
            raise ValueError(f"{op} has no CUDA kernel; see the table in docs/ops.md")
        found += [(kernels_of(op), instance) for instance in plan.instances()]
    return list(dict.fromkeys(found))


def compile_all(capability: int, ops: Sequence[str] = ()) -> int:
    """Compile for a GPU of `capability` (90 for sm_90); returns how many kernels there are."""
    wanted = kernels(ops)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        tasks = [pool.submit(nvrtc.compile, *kernel, capability) for kernel in wanted]
        for task in tasks:
            task.result()
    return len(wanted)


def main(ops: Sequence[str], architectures: str) -> int:
    """The command line; returns the exit status: 1 where a kernel cannot be compiled."""
    try:
        for name in architectures.split(","):
            count = compile_all(int(name.strip().removeprefix("sm_")), ops)
            print(f"{count} kernels for sm_{name.strip().removeprefix('sm_')} in {store.folder()}")
    except (ValueError, nvrtc.CompileError) as error:
        print(f"compile: {error}", file=sys.stderr)
        return 1
    return 0
