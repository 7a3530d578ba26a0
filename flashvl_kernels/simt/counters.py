"""What every CUDA kernel moves, counted by csrc/simt in small calls and kept for review.

`python -m flashvl_kernels.simt.counters [op ...]` writes tests/simt/counters.json anew: each op's
typical samples, launched as on an H100. A test compares the file with what the kernels do, and
`flashvl-bench gate --static` the files of two commits, so a kernel that begins to read a tensor
twice, or to meet a bank twice, is told by a number on a machine without a GPU. Nothing in it
depends on the machine: kernels run thread by thread, and every count is of what they ask for.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import flashvl_kernels  # noqa: F401  (registers the ops)
from flashvl_kernels import simt
from flashvl_kernels.cuda.device import H100
from flashvl_kernels.cuda.resources import ROOT, dump, ops
from flashvl_kernels.spec import REGISTRY, capture

FILE = ROOT / "tests" / "simt" / "counters.json"
DTYPES = ("bf16", "fp32")
"""fp16 takes the kernels of bf16."""

Counts = dict[str, int | float]
Rows = dict[str, Counts]


def numbers(result: simt.Result) -> Counts:
    """A call's line in the file.

    bytes_from_memory: with a cache that never forgets; bytes_moved: without any. accesses: of
    global memory, one a warp instruction; narrow: those of less than 16 bytes a lane. atomics: in
    global and shared memory. shared_bytes: the most of a block.
    """
    c = result.counters
    accesses = c["global_reads"] + c["global_writes"]
    return {
        "launches": len(result.launches),
        "bytes_from_memory": result.bytes_from_memory,
        "bytes_moved": result.bytes_moved,
        "sector_efficiency": round(result.sector_efficiency, 3),
        "accesses": accesses,
        "narrow": accesses - c["wide_accesses"],
        "atomics": c["global_atomics"] + c["shared_atomics"],
        "shared_wavefronts": c["shared_wavefronts"],
        "bank_conflicts": c["bank_conflicts"],
        "shared_bytes": c["shared_bytes"],
        "barriers": c["barriers"],
        "shuffles": c["shuffles"],
        "mma": c["mma"],
    }


def measure(op: str, built: ModuleType | None = None) -> Rows:
    """The lines of an op: its typical samples in both dtypes, those that its kernels take.

    built: another build of the kernels (a test's change of them). Raises RuntimeError where a call
    has a finding, since its counts would be those of a wrong kernel.
    """
    spec = REGISTRY[op]
    supports = spec.kernels["cuda"]
    rows = {}
    for sample in (each for each in spec.samples if each.kind == "typical"):
        for dtype in DTYPES:
            made = sample.build(simt.DTYPES[dtype])
            _, flat = capture(spec.function, *made.args, **made.kwargs)
            if supports(*flat) is not None:
                continue
            result = simt.call(spec, flat, H100, built)
            if result.findings:
                raise RuntimeError(f"counters: {op}, {sample.name}, {dtype}: {result.findings[0]}")
            rows[f"{sample.name}, {dtype}"] = numbers(result)
    return rows


def main(named: list[str], file: Path = FILE) -> int:
    """Write the lines of the ops named, or of all."""
    kept = json.loads(file.read_text()) if named and file.is_file() else {}
    kept["device"] = H100.name
    for op in named or ops():
        kept[op] = measure(op)
        file.write_text(dump(kept))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
