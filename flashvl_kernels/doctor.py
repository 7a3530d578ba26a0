"""`flashvl-kernels doctor`: what this installation can run, and what to do about the rest."""

from __future__ import annotations

import json
import os
import platform
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

import torch

from flashvl_kernels import extension, triton
from flashvl_kernels.cuda import built, nvrtc, store


@dataclass(frozen=True)
class Finding:
    """One line of the report; `advice` says what to do when `ok` is false."""

    name: str
    ok: bool
    text: str
    advice: str = ""


def _package_version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed (running from a source tree)"


def _extension() -> Finding:
    found = extension.EXTENSION
    record = extension.build_record()
    if found.loaded:
        built = f" (torch {record['torch']}, {record['compiler']})" if record.get("built") else ""
        return Finding("cpu extension", True, f"loaded from {found.path}{built}")
    return Finding("cpu extension", False, f"not loaded: {found.reason}", _extension_advice())


def _extension_advice() -> str:
    """The next command to run, for the reason the extension is not there."""
    for name in ("FLASHVL_EXTENSION", "FLASHVL_CPU_LEVEL"):
        if name in os.environ and name in extension.EXTENSION.reason:
            return f"correct {name} or unset it"
    if extension.EXTENSION.reason.startswith("torch is"):
        return "pip install --upgrade torch"
    return (
        "with a C++ compiler installed (Debian and Ubuntu: apt install g++), run: "
        f"FLASHVL_REQUIRE_EXT=1 pip install --force-reinstall --no-deps -v {_source()}"
    )


def _source() -> str:
    """What to hand to pip to install this package again: where it came from."""
    folder = Path(__file__).parent.parent
    if (folder / "CMakeLists.txt").is_file():
        return f"-e {folder}"
    try:
        direct = distribution("flashvl-kernels").read_text("direct_url.json")
    except PackageNotFoundError:
        direct = None
    url = json.loads(direct)["url"] if direct else "flashvl-kernels"
    return str(url).removeprefix("file://")


def _processor() -> Finding:
    if not extension.EXTENSION.loaded:
        text = f"{platform.machine()}; features are read by the extension"
        return Finding("cpu", True, text)
    features = " ".join(extension.cpu_features()) or "no feature that a level asks for"
    return Finding("cpu", True, f"{platform.machine()}: {features}")


def _level() -> Finding:
    if not extension.EXTENSION.loaded:
        return Finding("cpu level", True, "none: the torch backend runs every op")
    cap = os.environ.get("FLASHVL_CPU_LEVEL")
    why = f"FLASHVL_CPU_LEVEL={cap}" if cap else "the highest this CPU and this build have"
    levels = ", ".join(extension.available_levels())
    return Finding("cpu level", True, f"{extension.cpu_level()}: {why} (of {levels})")


def _triton() -> Finding:
    reason = triton.missing()
    if reason is not None:
        return Finding("triton", True, f"{reason} (needed for kernels on a GPU only)")
    reason = triton.unavailable("cuda")
    state = "its kernels run here" if reason is None else f"its kernels do not run here: {reason}"
    return Finding("triton", True, f"{triton.version()}: {state}")


def _cuda() -> Finding:
    if torch.version.cuda is None:
        return Finding("cuda", True, "this torch is built without CUDA")
    if not torch.cuda.is_available():
        return Finding("cuda", True, f"torch is built for CUDA {torch.version.cuda}, no GPU found")
    name = torch.cuda.get_device_name()
    major, minor = torch.cuda.get_device_capability()
    return Finding("cuda", True, f"{name}, sm_{major}{minor}, CUDA {torch.version.cuda}")


def _cuda_kernels() -> Finding:
    """Where the CUDA kernels come from: the extension, then NVRTC."""
    ahead = built.carried(extension.EXTENSION.path) if extension.EXTENSION.loaded else None
    texts = []
    if ahead is not None:
        names = ", ".join(f"sm_{architecture}" for architecture in ahead.architectures)
        stale = "" if built.archive() else ", of other sources than these: not used"
        texts.append(f"in the extension for {names} ({ahead.compiler}){stale}")
    reason = nvrtc.unavailable()
    if reason is None:
        texts.append(f"compiled on first use by NVRTC {nvrtc.version()}, kept in {store.folder()}")
    else:
        texts.append(f"cannot be compiled here: {reason}")
    return Finding("cuda kernels", True, "; ".join(texts))


def examine() -> list[Finding]:
    """Every finding, in the order they are printed."""
    return [
        Finding("flashvl-kernels", True, _package_version("flashvl-kernels")),
        Finding("python", True, f"{platform.python_version()} ({sys.executable})"),
        Finding("torch", True, str(torch.__version__)),
        _extension(),
        _processor(),
        _level(),
        Finding("threads", True, f"{torch.get_num_threads()} (torch.set_num_threads)"),
        _triton(),
        _cuda(),
        _cuda_kernels(),
    ]


def main() -> int:
    """Print the report. Returns 0 when the CPU extension is loaded, else 1."""
    findings = examine()
    for finding in findings:
        print(f"{'ok ' if finding.ok else 'BAD'} {finding.name:<16} {finding.text}")
        if finding.advice:
            print(f"    {'':<16} -> {finding.advice}")
    log = extension.build_record().get("log")
    if not extension.EXTENSION.loaded and log:
        print("\nThe end of the build's own output:")
        print("\n".join(f"    {line}" for line in log))
    return 0 if all(finding.ok for finding in findings) else 1
