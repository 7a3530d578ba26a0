"""`make sanitize`: the op tests on an extension built with AddressSanitizer and UBSan.

Builds into build/sanitize, loads that library through FLASHVL_EXTENSION with libasan preloaded, and
runs, at every level this machine has, the tests that execute kernels (all samples and their
gradients against the oracle, strided and zero-size ones among them, and offsets past 2^31) and the
fuzzed calls. The first report of a sanitizer ends the process that made it, and this one with
status 1. Leaks are not looked for: Python and PyTorch keep what they keep.

    python tools/sanitize.py [--level LEVEL ...] [-k EXPRESSION] [--fuzz CALLS] [--emulate-tiles]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import find_torch
from build_extension import LIBRARY, find_cmake, find_tool

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "sanitize"
TESTS = (
    "test_kernels_against_the_float64_oracle or test_gradients_against_the_float64_oracle or "
    "test_offsets_past_2_to_the_31 or by_the_bound_of_bf16"
)
FILES = (
    "tests/ops/test_registry.py",
    "tests/ops/test_backward.py",
    "tests/ops/test_precision.py",
)
# Frame pointers and line tables make a report readable; the levels' own -O3 stays, because the
# optimised code is what runs. The vectorised loops of some levels compile four times as long.
FLAGS = "-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g1"
# A report has a status of its own, so that it cannot be taken for a failed test.
REPORTED = 99
OPTIONS = {
    "ASAN_OPTIONS": f"detect_leaks=0:exitcode={REPORTED}:allocator_may_return_null=1",
    "UBSAN_OPTIONS": f"print_stacktrace=1:halt_on_error=1:exitcode={REPORTED}",
}


def build(folder: Path, levels: Sequence[str], emulated: bool, *options: str) -> Path:
    """The library of these levels, compiled in `folder`; nothing is done again that is up to date.
    emulated: level amx on tiles in memory. options: further ones of CMake."""
    if "amx" in levels:  # the kernels that gain nothing from AMX are the next level's
        levels = [*dict.fromkeys(("avx512_bf16", *levels))]
    torch = find_torch.find_for_build()
    cmake, ninja = find_cmake(), find_tool("ninja")
    if torch is None or cmake is None:
        raise SystemExit(f"{Path(sys.argv[0]).stem}: needs torch and cmake in this environment "
                         f"(make setup)")  # fmt: skip
    generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []
    configure = [
        *(cmake, "-S", str(ROOT), "-B", str(folder), *generator, "-DCMAKE_BUILD_TYPE=Release"),
        *(f"-DFLASHVL_LEVELS={';'.join(levels)}", f"-DFLASHVL_TORCH_DIR={torch.folder}"),
        *(f"-DFLASHVL_EMULATED_TILES={'ON' if emulated else 'OFF'}", *options),
    ]
    subprocess.run(configure, check=True, stdout=subprocess.DEVNULL)
    subprocess.run([cmake, "--build", str(folder), "--parallel", "2"], check=True)
    return folder / LIBRARY


def runtime(name: str) -> str:
    """The path of a sanitizer's shared library, as the compiler knows it."""
    compiler = os.environ.get("CXX", "c++")
    command = [compiler, f"-print-file-name={name}"]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    if not Path(found).is_absolute():
        raise SystemExit(f"sanitize: {compiler} has no {name}; install its sanitizer libraries")
    return found


def environment(level: str) -> dict[str, str]:
    """What a test process needs: the instrumented library, and the sanitizer's runtime first."""
    preload = f"{runtime('libasan.so')}:{runtime('libstdc++.so')}"
    return {**at_level(BUILD / LIBRARY, level), **OPTIONS, "LD_PRELOAD": preload}


def at_level(library: Path, level: str) -> dict[str, str]:
    """The environment of a process that runs `library` at `level`."""
    return {
        **os.environ,
        "FLASHVL_EXTENSION": str(library),
        "FLASHVL_CPU_LEVEL": level,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "model")]),
    }


def levels() -> list[str]:
    """The levels this machine runs, lowest first, as the library of this environment says."""
    code = "from flashvl_kernels import extension as e; print(*e.available_levels())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    if done.returncode or "scalar" not in done.stdout:
        raise SystemExit(f"sanitize: no extension (make setup): {done.stdout}{done.stderr}")
    return done.stdout.split()


def check(level: str, expression: str, fuzz: int) -> bool:
    """Run the tests and the fuzzed calls at `level`; True if nothing was reported or failed."""
    tests = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "timeout=0", "-k", expression]
    runs = [[*tests, *FILES]]
    if fuzz:
        runs.append(["tests/ops/test_fuzz.py", "0", "0", str(fuzz)])
    clean = True
    for run in runs:
        done = subprocess.run(
            [sys.executable, *run], env=environment(level), cwd=ROOT, capture_output=True, text=True
        )
        lines = done.stdout.strip().splitlines() or ["no output"]
        print(f"sanitize {level}: {lines[-1]}", flush=True)
        if done.returncode:
            what = "REPORT" if done.returncode == REPORTED else f"status {done.returncode}"
            print(f"sanitize {level}: {what}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}")
            clean = False
    return clean


def main() -> int:
    """Exit status 1 on a report or a failed test."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--level", action="append", help="only this level (may be repeated)")
    parser.add_argument("-k", default="", help="only tests that match, as in pytest")
    parser.add_argument("--fuzz", type=int, default=300, help="fuzzed calls a level (300)")
    parser.add_argument(
        "--emulate-tiles", action="store_true", help="level amx, too, on a CPU without its tiles"
    )
    options = parser.parse_args()
    offered = levels()
    emulated = options.emulate_tiles and offered[-1] == "avx512_bf16"
    if emulated:
        offered.append("amx")
    chosen = options.level or offered
    if unknown := set(chosen) - set(offered):
        parser.error(f"--level {', '.join(unknown)}: this machine runs {', '.join(offered)}")
    build(BUILD, chosen, emulated, f"-DCMAKE_CXX_FLAGS={FLAGS}")
    expression = f"({TESTS}) and ({options.k})" if options.k else TESTS
    clean = [check(level, expression, options.fuzz) for level in chosen]
    print(
        f"sanitize: AddressSanitizer and UBSan, levels {', '.join(chosen)}; every sample of the "
        f"registry's kernels and its gradients against the oracle, offsets past 2^31, "
        f"{options.fuzz} fuzzed calls a level: {'clean' if all(clean) else 'NOT CLEAN'}"
    )
    return 0 if all(clean) else 1


if __name__ == "__main__":
    sys.exit(main())
