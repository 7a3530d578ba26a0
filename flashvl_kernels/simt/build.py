"""Builds CUDA sources for the CPU: the runtime of csrc/simt, and one module a source file.

Everything is cached in FLASHVL_SIMT_CACHE (default: ~/.cache/flashvl-kernels/simt), by the hash of
the sources, the compiler and its flags. FLASHVL_SIMT_SANITIZE=1 builds with AddressSanitizer and
UBSan; the interpreter then needs libasan in LD_PRELOAD.
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import ModuleType

from flashvl_kernels.cuda.launch import Instance

CSRC = Path(__file__).resolve().parents[2] / "csrc"
RUNTIME = ("fiber", "report", "block", "traffic", "shared_memory", "accesses", "launch", "module")
FLAGS = ("-std=c++20", "-O1", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wno-unknown-pragmas")
SANITIZERS = ("-fsanitize=address,undefined", "-fno-omit-frame-pointer", "-g1")


class SimtError(RuntimeError):
    """The kernels cannot be built or run here; the text says why and what to do."""


def sanitized() -> bool:
    """Whether builds carry AddressSanitizer and UBSan."""
    return os.environ.get("FLASHVL_SIMT_SANITIZE", "0") not in ("", "0")


def unavailable() -> str | None:
    """The reason kernels cannot be run on this machine, or None."""
    if not (CSRC / "simt").is_dir():
        return (
            f"the CUDA sources are not at {CSRC}; simt runs from a checkout of the repository "
            f"(or pip install -e .)"
        )
    if _compiler() is None:
        return "no C++20 compiler found: install g++, or name one in CXX"
    if importlib.util.find_spec("pybind11") is None:
        return "pybind11 is missing: pip install pybind11"
    return None


def _compiler() -> str | None:
    return shutil.which(os.environ.get("CXX", "g++"))


def _folder() -> Path:
    named = os.environ.get("FLASHVL_SIMT_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "flashvl-kernels" / "simt"


@cache
def _version(compiler: str) -> str:
    done = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[0]


def _flags(csrc: Path) -> list[str]:
    import pybind11

    folders = (csrc, csrc / "cuda", pybind11.get_include(), sysconfig.get_paths()["include"])
    return [
        *FLAGS,
        *(SANITIZERS if sanitized() else ()),
        "-DFLASHVL_SIMT",
        *(f"-I{folder}" for folder in folders),
    ]


def _run(command: Sequence[str], what: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SimtError(f"simt: {what} does not compile:\n{done.stderr[-6000:]}")


def _digest(*parts: str | bytes) -> str:
    total = hashlib.sha256()
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        total.update(len(raw).to_bytes(8, "little") + raw)
    return total.hexdigest()[:24]


def _contents(csrc: Path, *patterns: str) -> list[bytes]:
    files = sorted(path for pattern in patterns for path in csrc.glob(pattern))
    return [part for path in files for part in (path.name.encode(), path.read_bytes())]


def _compile(csrc: Path, source: Path, target: Path, what: str) -> None:
    partial = target.with_suffix(f".{os.getpid()}.o")
    compiler = _compiler()
    assert compiler is not None
    _run([compiler, *_flags(csrc), "-c", str(source), "-o", str(partial)], what)
    partial.replace(target)  # whole or not at all: several processes may build at once


def _runtime() -> list[Path]:
    key = _digest(*_key(), *_contents(CSRC, "simt/*"))
    folder = _folder() / f"runtime-{key}"
    folder.mkdir(parents=True, exist_ok=True)
    objects = []
    for name in RUNTIME:
        target = folder / f"{name}.o"
        if not target.exists():
            _compile(CSRC, CSRC / "simt" / f"{name}.cpp", target, f"csrc/simt/{name}.cpp")
        objects.append(target)
    return objects


def _key() -> list[str]:
    compiler = _compiler()
    assert compiler is not None
    return [_version(compiler), *FLAGS, *(SANITIZERS if sanitized() else ())]


def _table(source: str, instances: Sequence[Instance]) -> str:
    """The source handed to the compiler: the kernels, and their names."""
    rows = "\n".join(
        f'      kernel<cuda::{i.arguments}>("{i.expression}", &{i.expression}),' for i in instances
    )
    return f"""{source}
#include "simt/launch.h"
namespace flashvl::simt {{
using namespace flashvl::cuda;
const std::vector<Kernel>& kernels() {{
  static const std::vector<Kernel> all = {{
{rows}
  }};
  return all;
}}
}}  // namespace flashvl::simt
"""


def build(source: str, instances: Sequence[Instance], what: str, csrc: Path = CSRC) -> ModuleType:
    """The module that launches `instances` of the kernels in `source`, CUDA C++ as text.

    what: names the source in errors. csrc: where its includes are looked for (a test's altered
    copy of the sources). Raises SimtError where it does not compile.
    """
    reason = unavailable()
    if reason:
        raise SimtError(f"simt: {reason}")
    text = _table(source, instances)
    key = _digest(text, *_key(), *_contents(csrc, "simt/*", "cuda/*.cuh", "cuda/ptx/*.cuh"))
    folder = _folder()
    library = folder / f"{key}.so"
    if not library.exists():
        objects = _runtime()
        generated = folder / f"{key}.{os.getpid()}.cpp"
        generated.write_text(text)
        target = generated.with_suffix(".o")
        partial = generated.with_suffix(".so")
        try:
            _compile(csrc, generated, target, what)
            compiler = _compiler()
            assert compiler is not None
            linked = [str(path) for path in (target, *objects)]
            flags = SANITIZERS if sanitized() else ()
            _run([compiler, *flags, "-shared", *linked, "-o", str(partial)], what)
            partial.replace(library)
        finally:
            generated.unlink(missing_ok=True)
            target.unlink(missing_ok=True)
    return _load(str(library))


@cache
def _load(library: str) -> ModuleType:
    # pybind11 keeps one module a full name, so each build has its own; the last part names PyInit.
    name = f"flashvl_simt_{Path(library).stem}.flashvl_simt"
    loader = importlib.machinery.ExtensionFileLoader(name, library)
    found = importlib.util.spec_from_loader(name, loader)
    assert found is not None
    module = importlib.util.module_from_spec(found)
    loader.exec_module(module)
    return module
