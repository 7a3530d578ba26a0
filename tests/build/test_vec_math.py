"""The errors that csrc/cpu/vec_math.h states, and the words of csrc/cpu/vec.h, measured in C++.

Compiled here with the flags of CMakeLists.txt, for the levels whose vector headers differ: amx has
that of avx512_bf16.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from flashvl_kernels import extension

# The numbers in the head of vec_math.h: units in the last place, or parts of max(|x|, 1).
LARGEST = {
    "exp": 1.1,
    "sigmoid": 2.4,
    "silu": 2.4,
    "quick_silu": 100,
    "gelu_tanh": 1.2e-7,
    "quick_gelu_tanh": 5e-7,
    "normal_cdf": 1e-7,
    "quick_exp": 1e-5,
}


def level_flags(root: Path, level: str) -> list[str]:
    """The machine flags of `level`, as CMakeLists.txt sets them."""
    text = (root / "CMakeLists.txt").read_text()
    found = re.search(rf"set\({level} ([^)]*)\)", text)
    if found is None:
        return []
    flags: list[str] = []
    for word in found[1].split():
        inner = re.fullmatch(r"\$\{(\w+)\}", word)
        flags += level_flags(root, inner[1]) if inner else [word]
    return flags


@pytest.mark.parametrize("level", ["scalar", "avx2", "avx512", "avx512_bf16"])
def test_errors_and_words(root: Path, tmp_path: Path, level: str) -> None:
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler here")
    if level not in extension.available_levels():
        pytest.skip(f"level {level} is not available here: {extension.available_levels()}")
    flags = level_flags(root, level)
    assert flags or level == "scalar", f"CMakeLists.txt has no set({level} ...)"
    program = tmp_path / level
    subprocess.run(
        [compiler, "-std=c++20", "-O2", "-ffp-contract=off", "-fno-math-errno", *flags,
         f"-DFLASHVL_LEVEL={level}", f"-DFLASHVL_LEVEL_{level}", "-I", str(root / "csrc" / "cpu"),
         str(root / "tests" / "build" / "vec_math.cpp"), "-o", str(program)],
        check=True,
    )  # fmt: skip
    out = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    errors = {name: float(value) for name, value in re.findall(r"error (\w+) (\S+)", out)}
    assert errors.keys() == LARGEST.keys()
    for name, error in errors.items():
        assert error <= LARGEST[name], out
    assert "FAILED" not in out, out
