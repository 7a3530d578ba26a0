"""Instructions that kernels execute, counted by valgrind: the same number on every run.

One process a side runs under callgrind, with one thread and, because valgrind knows no AVX-512 and
no AMX, at the level avx2. Around one call of each case, made before without counting, the counting
is switched on, and the counts are dumped by library: what is summed up lies in the libraries of the
checkout, without Python and PyTorch; where the checkout has none, all instructions count.

    valgrind --tool=callgrind ... python -c ... SETTINGS_JSON    # what `count` starts
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flashvl_bench.compare import Key
from flashvl_bench.gate.checkouts import CheckoutError
from flashvl_bench.gate.turns import Settings, Tree, link_tools

LIBRARY = "libflashvl_kernels"
LEVEL = "avx2"
# Callgrind takes some fifty times as long: a case of this size takes some seconds.
LARGEST_FLOPS, LARGEST_BYTES = 3e8, 16e6
_CLIENT = """
#include <valgrind/callgrind.h>
void begin(void) { CALLGRIND_ZERO_STATS; CALLGRIND_START_INSTRUMENTATION; }
void finish(const char* name) { CALLGRIND_STOP_INSTRUMENTATION; CALLGRIND_DUMP_STATS_AT(name); }
"""
_COUNTER = "from flashvl_bench.gate import instructions; instructions.count_here()"


def missing() -> str | None:
    """Why nothing can be counted here; None if it can."""
    if shutil.which("valgrind") is None:
        return "valgrind is not on PATH (Debian and Ubuntu: apt install valgrind)"
    if _compiler() is None:
        return "no C compiler is on PATH"
    return None


def _compiler() -> str | None:
    return next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)


def count(tree: Tree, settings: Settings) -> dict[Key, int]:
    """Instructions of each case of a tree. CheckoutError where the process fails."""
    with tempfile.TemporaryDirectory(prefix="flashvl-gate-") as name:
        folder = Path(name)
        link_tools(folder)
        client = _client(folder)
        asked = {
            "client": str(client), "ops": settings.ops, "dtypes": settings.dtypes,
            "backend": settings.backend, "samples": settings.samples, "cases": settings.cases,
        }  # fmt: skip
        command = [
            "valgrind", "--tool=callgrind", "--instr-atstart=no", "--quiet",
            f"--callgrind-out-file={folder / 'counts'}", sys.executable, "-P", "-c", _COUNTER,
            json.dumps(asked),
        ]  # fmt: skip
        environment = {
            **os.environ, **tree.environment, "FLASHVL_CPU_LEVEL": LEVEL, "PYTHONHASHSEED": "0",
            "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, (*tree.paths, folder))),
        }  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
            raise CheckoutError(f"counting instructions failed: {lines[-1]}")
        keys = json.loads(done.stdout.splitlines()[-1])
        roots = [LIBRARY, *(str(path.resolve()) for path in tree.paths)]
        found = {}
        for file in folder.glob("counts.*"):
            number, counts = read(file.read_text(errors="replace"))
            if number is not None:
                own = sum(n for library, n in counts.items() if any(r in library for r in roots))
                op, sample, dtype, backend = keys[number]
                found[op, sample, dtype, backend] = own or sum(counts.values())
    return found


def _client(folder: Path) -> Path:
    """The library that talks to callgrind from inside the process."""
    source, library = folder / "client.c", folder / "client.so"
    source.write_text(_CLIENT)
    command = [str(_compiler()), "-O1", "-shared", "-fPIC", str(source), "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CheckoutError(f"counting instructions needs valgrind's headers: {done.stderr[:200]}")
    return library


def read(text: str) -> tuple[int | None, Counter[str]]:
    """The number a callgrind file was dumped under (None: at the end), and instructions by library.

    Costs stand on lines of their own below the library (`ob=`) and function they belong to; the
    line after `calls=` repeats what a callee has counted for itself (Callgrind Format, valgrind's
    manual).
    """
    label = re.search(r"^desc: Trigger: Client Request: (\d+)$", text, re.MULTILINE)
    names: dict[str, str] = {}
    counts: Counter[str] = Counter()
    library, callee = "", False
    for line in text.splitlines():
        if line.startswith(("ob=", "cob=")):
            number, _, name = line.partition("=")[2].partition(" ")
            names.setdefault(number, name)
            if line.startswith("ob="):
                library = names[number]
        elif line.startswith("calls="):
            callee = True
        elif re.match(r"[+*\-\d]", line):
            if not callee:
                words = line.split()
                counts[library] += int(words[1]) if len(words) > 1 else 0
            callee = False
    return (int(label[1]) if label else None), counts


def count_here() -> None:
    """In the process under callgrind: run each case once between `begin` and `finish`."""
    import torch

    from flashvl_bench.gate import side

    asked: dict[str, Any] = json.loads(sys.argv[1])
    client = ctypes.CDLL(asked["client"])
    torch.set_num_threads(1)
    keys = []
    for case in _cases(asked):
        try:
            run, flat = case.ready(judge=False)
        except side.Ready:
            continue
        with case.context(), torch.no_grad():
            run(*flat)
            client.begin()
            run(*flat)
            client.finish(str(len(keys)).encode())
        keys.append(case.key)
    print(json.dumps(keys))


def _cases(asked: dict[str, Any]) -> Iterator[Any]:
    """Of each op the largest samples that are small enough for callgrind."""
    from flashvl_bench.cases import Case
    from flashvl_bench.ceilings import DTYPES
    from flashvl_bench.gate import side
    from flashvl_kernels.spec import REGISTRY

    if asked["cases"]:
        yield from side.file_cases(asked["cases"])
        return
    for name in asked["ops"] or sorted(REGISTRY):
        for dtype in asked["dtypes"]:
            sized = []
            for sample in REGISTRY[name].samples if name in REGISTRY else ():
                if sample.kind in ("typical", "bench"):
                    case = Case(REGISTRY[name], sample, DTYPES[dtype])
                    cost = case.spec.cost(*case.flat())
                    if cost.flops <= LARGEST_FLOPS and cost.bytes <= LARGEST_BYTES:
                        sized.append((-cost.bytes - cost.flops / 100, len(sized), case))
            chosen = sorted(sized)[: asked["samples"]]
            yield from (side.OpCase(case, asked["backend"]) for _, _, case in chosen)
