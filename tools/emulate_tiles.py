"""`make emulate`: the op tests at level amx on a CPU with AVX512_BF16, but without AMX.

Builds into build/emulated, with tile registers that lie in memory (csrc/cpu/matrix/tile_emulated.h)
and say nothing about speed. Runs samples and gradients against the oracle and fuzzed calls.

    python tools/emulate_tiles.py [arguments of pytest]
"""

from __future__ import annotations

import subprocess
import sys

import sanitize

TESTS = (
    "tests/ops/test_registry.py",
    "tests/ops/test_backward.py",
    "tests/ops/test_precision.py",
    "tests/ops/test_fuzz.py",
)


def main() -> int:
    """The exit status of the tests."""
    offered = sanitize.levels()
    if "avx512_bf16" not in offered:
        raise SystemExit(f"emulate_tiles: needs a CPU with AVX512_BF16; this one runs {offered}")
    levels = sanitize.needed([*offered, "amx"], ["amx"])
    library = sanitize.build(sanitize.ROOT / "build" / "emulated", levels, sanitize.EMULATED)
    command = [sys.executable, "-m", "pytest", "-q", "-o", "timeout=0", *(sys.argv[1:] or TESTS)]
    return subprocess.run(
        command, env=sanitize.at_level(library, "amx"), cwd=sanitize.ROOT
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
