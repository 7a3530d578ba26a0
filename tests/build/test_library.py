"""The library as the loader and the CPU see it: stable ABI only, no instruction set leaks."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest


def output_of(program: str, *args: str) -> str:
    if shutil.which(program) is None:
        pytest.skip(f"needs {program} (binutils)")
    return subprocess.run([program, *args], capture_output=True, text=True, check=True).stdout


def test_only_stable_abi_symbols_are_needed(library: Path) -> None:
    lines = output_of("nm", "-D", "--undefined-only", str(library)).splitlines()
    names = {line.split()[-1].split("@")[0] for line in lines}
    assert "torch_call_dispatcher" in names
    unstable = [name for name in names if re.match(r"_Z.*(3c10|2at|5torch|4caffe2)", name)]
    assert not unstable
    own = [name for name in names if "flashvl" in name]
    assert not own, "an absent level must be a hidden null, not a symbol another library can give"


def test_no_code_is_exported(library: Path) -> None:
    """Only the bytes of CUDA kernels compiled ahead, where it was built with them."""
    lines = output_of("nm", "-D", "--defined-only", str(library)).splitlines()
    names = {line.split()[-1] for line in lines}
    assert names in (set(), {"flashvl_cuda_images_begin", "flashvl_cuda_images_end"})


def test_links_libtorch_cpu_without_a_path(library: Path) -> None:
    dynamic = output_of("readelf", "-d", str(library))
    needed = set(re.findall(r"\(NEEDED\).*\[(.*?)\]", dynamic))
    assert "libtorch_cpu.so" in needed
    assert not {name for name in needed if name.startswith(("libc10", "libtorch_python", "libpyt"))}
    assert "RPATH" not in dynamic
    assert "RUNPATH" not in dynamic


def functions(library: Path) -> dict[str, str]:
    """Disassembly by mangled function name."""
    bodies: dict[str, list[str]] = defaultdict(list)
    name = ""
    for line in output_of("objdump", "-d", "--no-show-raw-insn", str(library)).splitlines():
        header = re.match(r"[0-9a-f]+ <(.+)>:$", line)
        if header:
            name = header[1]
        elif name and "\t" in line:
            bodies[name].append(line.split("\t", 1)[1])
    return {name: "\n".join(body) for name, body in bodies.items()}


AVX = re.compile(r"^v[a-z0-9]+ |%[yz]mm", re.MULTILINE)
AVX512 = re.compile(r"%zmm|%k[0-7]\b|%[xy]mm(1[6-9]|2[0-9]|3[01])")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="x86-64 instruction sets")
def test_wide_instructions_stay_inside_their_level(library: Path) -> None:
    avx_users, avx512_users = set(), set()
    for name, body in functions(library).items():
        # _ZZN: a lambda inside of one of the level's functions.
        level = re.match(r"_ZZ?NK?7flashvl3cpu(?:4(avx2)|6(avx512)|11(avx512_bf16)|3(amx))", name)
        found = next((group for group in level.groups() if group), "") if level else ""
        if AVX.search(body):
            avx_users.add(found or name)
        if AVX512.search(body):
            avx512_users.add(found or name)
    wide = {"avx512", "avx512_bf16", "amx"}
    assert {"avx2", "avx512"} <= avx_users <= {"avx2"} | wide
    assert {"avx512"} <= avx512_users <= wide
