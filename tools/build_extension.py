"""Build libflashvl_kernels.so with CMake, and record how that went.

The record (`_build.json`, beside the library) is what `flashvl-kernels doctor` reads: on a machine
without a compiler the package still installs, in pure Python, and says why.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import find_torch

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = "libflashvl_kernels.so"
RECORD = "_build.json"
_CMAKE_MINIMUM = (3, 20)
_LOG_LINES = 25


class BuildError(Exception):
    """Why the extension could not be built, in words a user can act on; `log` is the tool's own."""

    def __init__(self, reason: str, log: list[str] | None = None) -> None:
        super().__init__(reason)
        self.log = [line for line in log or [] if line.strip()][-_LOG_LINES:]


def skipped() -> bool:
    """FLASHVL_SKIP_EXT=1: install without the extension."""
    return os.environ.get("FLASHVL_SKIP_EXT", "0") not in ("", "0")


def required() -> str | None:
    """The setting by which a failed build fails the install, or None."""
    for name in ("FLASHVL_REQUIRE_EXT", "FLASHVL_BUILD_CUDA"):
        if os.environ.get(name, "0") not in ("", "0"):
            return name
    return None


def with_cuda() -> bool:
    """FLASHVL_BUILD_CUDA=1: compile the CUDA kernels with nvcc, for FLASHVL_CUDA_ARCHS (such as
    "80,90"; all that are supported without it)."""
    return os.environ.get("FLASHVL_BUILD_CUDA", "0") not in ("", "0")


def find_tool(name: str) -> str | None:
    """A program that runs, on PATH or beside the interpreter (an environment not activated)."""
    for candidate in (shutil.which(name), shutil.which(name, path=sysconfig.get_path("scripts"))):
        if candidate is not None and _tool_version(candidate) is not None:
            return candidate
    return None


def _tool_version(program: str) -> tuple[int, ...] | None:
    """The version a program prints; None when it does not run (a shim without its program)."""
    try:
        result = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    except OSError:
        return None
    words = result.stdout.split("\n", 1)[0].split()
    if result.returncode != 0 or not words:
        return None
    return tuple(int(part) for part in words[-1].split(".")[:2] if part.isdigit())


def find_cmake() -> str | None:
    """A CMake recent enough to configure CMakeLists.txt."""
    cmake = find_tool("cmake")
    return cmake if cmake and (_tool_version(cmake) or (0,)) >= _CMAKE_MINIMUM else None


def _find_compiler() -> str:
    named = os.environ.get("CXX")
    if named:
        return named
    for name in ("c++", "g++", "clang++"):
        found = shutil.which(name)
        if found is not None:
            return found
    raise BuildError(
        "no C++ compiler was found at install time; install one (Debian and Ubuntu: apt install "
        "g++; Fedora: dnf install gcc-c++) or name it in CXX"
    )


def _jobs() -> int:
    """Compilers at a time: MAX_JOBS, CMAKE_BUILD_PARALLEL_LEVEL, else one a core up to 8."""
    for name in ("MAX_JOBS", "CMAKE_BUILD_PARALLEL_LEVEL"):
        value = os.environ.get(name, "")
        if value.isdigit() and int(value) > 0:
            return int(value)
    return min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2)


def _run(command: list[str], failure: str, **variables: str) -> None:
    """Run a tool, echoing what it prints; raise BuildError(failure) when it does not succeed."""
    lines = []
    with subprocess.Popen(
        command,
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line.rstrip())
    if process.returncode != 0:
        raise BuildError(f"{failure} (exit status {process.returncode})", lines)


def _build_folder(compiler: str) -> Path:
    """One folder per compiler and flags: CMake ignores a changed CXX in a folder it has seen."""
    key = "\0".join([compiler, *(os.environ.get(name, "") for name in ("CXXFLAGS", "LDFLAGS"))])
    return ROOT / "build" / f"cmake-{hashlib.sha256(key.encode()).hexdigest()[:8]}"


def _compile_cuda(torch: find_torch.Torch, folder: Path) -> Path:
    """The CUDA kernels as an archive, by the package's own list of them."""
    archive = folder / "cuda.zip"
    folder.mkdir(parents=True, exist_ok=True)
    chosen = os.environ.get("FLASHVL_CUDA_ARCHS")
    _run(
        [
            *(sys.executable, "-m", "flashvl_kernels.cuda.built", str(archive)),
            *(["--arch", chosen] if chosen else []),
        ],
        "compiling the CUDA kernels with nvcc failed",
        PYTHONPATH=os.pathsep.join([str(ROOT), str(torch.folder.parent)]),
        MAX_JOBS=str(_jobs()),
    )
    return archive


def _compile() -> tuple[Path, dict[str, str]]:
    torch = find_torch.find_for_build()
    if torch is None:
        raise BuildError(
            f"no {find_torch.REQUIREMENT} was found to build against; install torch first, or "
            "install with build isolation"
        )
    compiler = _find_compiler()
    cmake = find_cmake()
    if cmake is None:
        raise BuildError("no CMake 3.20 or newer was found; run: pip install cmake ninja")
    ninja = find_tool("ninja")
    generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []
    folder = _build_folder(compiler)
    if generator and (folder / "Makefile").exists():
        shutil.rmtree(folder)  # CMake refuses to change generators in a folder
    images = _compile_cuda(torch, folder) if with_cuda() else ""
    _run(
        [
            *(cmake, "-S", str(ROOT), "-B", str(folder), *generator),
            *(f"-DFLASHVL_TORCH_DIR={torch.folder}", f"-DFLASHVL_CUDA_IMAGES={images}"),
        ],
        f"CMake could not set up a build with the C++ compiler {compiler}",
    )
    _run(
        [cmake, "--build", str(folder), "--parallel", str(_jobs())],
        f"compiling the extension with {compiler} failed",
    )
    identity = (folder / "compiler.txt").read_text()
    return folder / LIBRARY, {"torch": torch.version, "compiler": identity}


def _place(source: Path, destination: Path) -> None:
    """Copy so that a process that has the old library open keeps the old one whole."""
    partial = destination.with_suffix(".partial")
    shutil.copyfile(source, partial)
    os.replace(partial, destination)


def build(package: Path) -> None:
    """Put the library and the record into `package`, or only the record where it cannot be built.

    Raises SystemExit when the build fails and FLASHVL_REQUIRE_EXT=1 or FLASHVL_BUILD_CUDA=1.
    """
    package.mkdir(parents=True, exist_ok=True)
    library = package / LIBRARY
    record: dict[str, object] = {"built": False, "reason": "", "log": []}
    if skipped():
        record["reason"] = "the install was told to skip the extension (FLASHVL_SKIP_EXT=1)"
    else:
        try:
            built, facts = _compile()
            _place(built, library)
            record = {"built": True, **facts}
        except BuildError as error:
            record["reason"], record["log"] = str(error), error.log
            _complain(error)
    if not record["built"]:
        library.unlink(missing_ok=True)
    (package / RECORD).write_text(json.dumps(record, indent=1) + "\n")


def _complain(error: BuildError) -> None:
    bar = "!" * 88
    print(
        f"\n{bar}\nflashvl-kernels: the CPU extension was NOT built: {error}.\n"
        "The package works without it, on the slower torch backend; `flashvl-kernels doctor` tells "
        f"more.\n{bar}\n",
        file=sys.stderr,
        flush=True,
    )
    setting = required()
    if setting:
        raise SystemExit(
            f"flashvl-kernels: {setting}=1 makes the failed build of the extension an error: "
            f"{error}"
        )
