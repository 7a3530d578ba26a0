"""`make emulate`: the op tests at level amx on a CPU with AVX512_BF16, but without AMX.

Builds into build/emulated, with tile registers that lie in memory (csrc/cpu/matrix/tile_emulated.h)
and say nothing about speed. Runs samples and gradients against the oracle and fuzzed calls.

    python tools/emulate_tiles.py [arguments of pytest]
    python tools/emulate_tiles.py --build        only builds; prints where the library is
"""

from __future__ import annotations

import fcntl
import subprocess
import sys
from pathlib import Path

import sanitize

FOLDER = sanitize.ROOT / "build" / "emulated"
TESTS = (
    "tests/ops/test_registry.py",
    "tests/ops/test_backward.py",
    "tests/ops/test_precision.py",
    "tests/ops/test_fuzz.py",
)


def build() -> Path:
    """The library; one process at a time builds it, others wait."""
    offered = sanitize.levels()
    if "avx512_bf16" not in offered:
        raise SystemExit(f"emulate_tiles: needs a CPU with AVX512_BF16; this one runs {offered}")
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return sanitize.build(FOLDER, ["amx"], emulated=True)


def main() -> int:
    """The exit status of the tests."""
    library, arguments = build(), sys.argv[1:]
    if arguments == ["--build"]:
        print(library)
        return 0
    command = [sys.executable, "-m", "pytest", "-q", "-o", "timeout=0", *(arguments or TESTS)]
    environment = sanitize.at_level(library, "amx")
    return subprocess.run(command, env=environment, cwd=sanitize.ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
