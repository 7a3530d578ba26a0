"""Compiles one kernel at a time with NVRTC, through cuda-python: no toolkit, and no GPU.

A kernel is compiled when a launch first names it, and kept on disk (store.py). A GPU newer than the
compiler gets the PTX of the newest architecture it knows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from flashvl_kernels.cuda import kernels_of, sources, store
from flashvl_kernels.cuda.launch import Instance

FLAGS = ("--std=c++17", "-default-device")
OLDEST = 80
"""sm_80 is the first with cp.async and the bf16 mma."""


class CompileError(RuntimeError):
    """NVRTC is missing or refused a kernel; the text says why and what to do."""


@dataclass(frozen=True)
class Compiled:
    """image: a cubin, or PTX where the GPU is newer than the compiler. entry: the kernel's name
    in it."""

    image: bytes
    entry: str


@cache
def _nvrtc() -> Any:
    try:
        from cuda.bindings import nvrtc

        nvrtc.nvrtcVersion()  # the binding finds the library when it first needs it
    except Exception as error:  # ImportError, or the loader's own RuntimeError
        raise CompileError(
            f"NVRTC is not here ({error}): pip install 'flashvl-kernels[cuda]'"
        ) from error
    return nvrtc


def unavailable() -> str | None:
    """The reason kernels cannot be compiled here, or None."""
    try:
        _nvrtc()
        sources.folder()
    except (CompileError, FileNotFoundError) as error:
        return str(error)
    return None


def version() -> str:
    """Of NVRTC, such as "13.0"."""
    return ".".join(str(number) for number in _call("nvrtcVersion"))


def architectures() -> list[int]:
    """Those the compiler knows, such as 80 and 90."""
    count = _call("nvrtcGetNumSupportedArchs")
    return sorted(int(number) for number in _call("nvrtcGetSupportedArchs")[:count])


def target(capability: int) -> tuple[str, bool]:
    """The --gpu-architecture for a GPU, and whether it makes a cubin (else PTX).

    capability: 90 for sm_90. Raises CompileError below sm_80.
    """
    if capability < OLDEST:
        raise CompileError(f"the kernels need sm_{OLDEST} or newer; this GPU is sm_{capability}")
    known = architectures()
    if capability in known:
        return f"sm_{capability}", True
    return f"compute_{max(number for number in known if number <= capability)}", False


def compile(op: str, instance: Instance, capability: int) -> Compiled:
    """`instance` of csrc/cuda/<op>.cuh for a GPU of `capability`, from the disk if it is there."""
    architecture, binary = target(capability)
    op = kernels_of(op)
    name = store.key(sources.digest(), version(), *FLAGS, architecture, op, instance.expression)
    kept = store.load(name)
    if kept is None:
        compiled = _compile(op, instance, architecture, binary)
        store.save(name, compiled.entry.encode() + b"\0" + compiled.image)
        return compiled
    entry, _, image = kept.partition(b"\0")
    return Compiled(image, entry.decode())


def _compile(op: str, instance: Instance, architecture: str, binary: bool) -> Compiled:
    text = f'#include "{op}.cuh"\nusing namespace flashvl::cuda;\n'
    program = _call("nvrtcCreateProgram", text.encode(), f"{op}.cu".encode(), 0, [], [])
    try:
        expression = instance.expression.encode()
        _call("nvrtcAddNameExpression", program, expression)
        flags = [*FLAGS, f"--gpu-architecture={architecture}", f"-I{sources.folder()}"]
        status = _nvrtc().nvrtcCompileProgram(
            program, len(flags), [flag.encode() for flag in flags]
        )[0]
        if int(status):
            raise CompileError(
                f"{instance.expression} of csrc/cuda/{op}.cuh does not compile for "
                f"{architecture}:\n{_log(program)}"
            )
        what = "CUBIN" if binary else "PTX"
        image = bytearray(_call(f"nvrtcGet{what}Size", program))
        _call(f"nvrtcGet{what}", program, image)
        entry = _call("nvrtcGetLoweredName", program, expression)
        return Compiled(bytes(image), entry.decode())
    finally:
        _call("nvrtcDestroyProgram", program)


def _log(program: Any) -> str:
    text = bytearray(_call("nvrtcGetProgramLogSize", program))
    _call("nvrtcGetProgramLog", program, text)
    return text.decode(errors="replace").rstrip("\0")[:4000]


def _call(name: str, *args: Any) -> Any:
    """A function of NVRTC: its one result, or a tuple of several."""
    status, *found = getattr(_nvrtc(), name)(*args)
    if int(status):
        text = _nvrtc().nvrtcGetErrorString(status)[1].decode()
        raise CompileError(f"{name}: {text}")
    return found[0] if len(found) == 1 else tuple(found)
