"""Which kernel runs a call: the choice, and its explanation.

`auto` takes the fastest backend that supports the call on this machine and ends at `torch`, the
reference, which supports every call. A backend asked for by name is a promise: where it cannot
run the call, the call fails with the reason instead of falling back in silence. A list such as
"cpu,torch" spells out the fallback one wants.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flashvl_kernels import extension, fastest, gpu, precision, triton

if TYPE_CHECKING:
    from flashvl_kernels.spec import OpSpec

NAMES = ("cpu", "cuda", "triton", "torch")
"""Every backend; `torch` is the reference. On a GPU, which is the fastest depends on the call
(fastest.py)."""

SLOWER = "plain PyTorch was faster where such calls were measured (flashvl_kernels/fastest.py)"
"""Why `auto` passes over a kernel that supports the call."""

_AUTO = {"cpu": ("cpu", "torch"), "cuda": ("cuda", "triton", "torch")}


class BackendError(RuntimeError):
    """The backend asked for cannot run this call; the text says why."""


def _parse(text: str) -> tuple[str, ...] | None:
    """The preference list behind a name such as "cpu,torch"; None stands for auto."""
    if text == "auto":
        return None
    names = tuple(part.strip() for part in text.split(","))
    for name in names:
        if name not in NAMES:
            raise ValueError(
                f"backend: got {name!r}; needs auto, {', '.join(sorted(NAMES))}, or a list of them "
                f"such as 'cpu,torch'. Check set_backend, backend(...) and FLASHVL_BACKEND."
            )
    return names


_process: tuple[str, ...] | None = _parse(os.environ.get("FLASHVL_BACKEND", "auto"))
_scoped: ContextVar[tuple[tuple[str, ...] | None] | None] = ContextVar("flashvl", default=None)


def set_backend(name: str) -> None:
    """Choose the backend of the whole process: "auto", a backend, or a list in order of choice."""
    global _process
    _process = _parse(name)


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Choose the backend inside a `with` block, in this thread or task only."""
    token = _scoped.set((_parse(name),))
    try:
        yield
    finally:
        _scoped.reset(token)


def device_of(args: tuple[Any, ...]) -> str:
    """The device type of the call: that of its first tensor."""
    for arg in args:
        if isinstance(arg, Tensor):
            return "cpu" if arg.is_cpu else arg.device.type
    return "cpu"


def _asked_for() -> tuple[str, ...] | None:
    """What the user chose, here or for the process; None: auto."""
    scoped = _scoped.get()
    return _process if scoped is None else scoped[0]


def preference(device: str) -> tuple[str, ...]:
    """The backends to try for tensors on `device`; under auto on a GPU, their order is that of
    each call."""
    chosen = _asked_for()
    return candidates(device) if chosen is None else chosen


def order(spec: OpSpec, args: tuple[Any, ...], device: str) -> tuple[str, ...]:
    """The backends to try for this call, in order."""
    if device == "cuda" and _asked_for() is None:
        return fastest.order(spec.name, args)
    return preference(device)


def candidates(device: str) -> tuple[str, ...]:
    """The backends that `auto` tries for tensors on `device`, whatever this machine has."""
    return _AUTO.get(device, ("torch",))


def available(device: str = "cpu") -> list[str]:
    """The backends that can run at least one op on `device` on this machine."""
    names = []
    if device == "cpu" and extension.EXTENSION.loaded:
        names.append("cpu")
    if device == "cuda" and _why_not_cuda() is None:
        names.append("cuda")
    if device == "cuda" and triton.unavailable(device) is None:
        names.append("triton")
    return [*names, "torch"]


@dataclass(frozen=True)
class Kernel:
    """One backend's implementation of one op."""

    backend: str
    name: str
    run: Callable[..., Any]


@dataclass(frozen=True)
class Explanation:
    """What runs a call and why: `rejected` maps each better backend to its reason."""

    op: str
    backend: str
    kernel: str
    rejected: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{self.op}: {self.backend} backend, kernel {self.kernel}"]
        lines += [f"  not {name}: {reason}" for name, reason in self.rejected.items()]
        return "\n".join(lines)


def why_not(
    spec: OpSpec, name: str, args: tuple[Any, ...], device: str | None = None
) -> str | None:
    """The reason `name` cannot run this call, in words a user can act on; None when it can.

    device: that of the call, where the caller knows it.
    """
    if name == "torch":
        return None
    if name not in spec.kernels:
        return f"this version has no {name} kernel for {spec.name}; the torch backend runs it"
    if name == "cpu" and not extension.EXTENSION.loaded:
        return f"{extension.EXTENSION.reason} (run `flashvl-kernels doctor`)"
    if name == "cpu" and not extension.has(spec.name):
        return f"the CPU extension is older than {spec.name}; reinstall flashvl-kernels"
    for arg in args:
        if isinstance(arg, Tensor) and arg.dtype is torch.float64:
            return "kernels compute in float32; float64 runs through the reference"
    device = device or device_of(args)
    if name == "triton":
        return triton.unavailable(device) or spec.kernels[name](*args)
    wanted = "cpu" if name == "cpu" else "cuda"
    if device != wanted:
        return f"the tensors are on {device}; move them to {wanted} or use the torch backend"
    if name == "cuda":
        reason = _why_not_cuda(next(arg.device for arg in args if isinstance(arg, Tensor)))
        if reason is not None:
            return reason
    return spec.kernels[name](*args)


def _why_not_cuda(device: torch.device | None = None) -> str | None:
    """Why no CUDA kernel can run on `device` (the current one); known after the first call."""
    from flashvl_kernels.cuda import driver

    reason = driver.why_not()
    if reason is not None:
        return reason
    if device is None:
        device = torch.device("cuda", torch.cuda.current_device())
    return driver.why_not_on(gpu.describe(device).capability)


def choose(spec: OpSpec, args: tuple[Any, ...], device: str | None = None) -> Kernel:
    """The kernel for this call under the preference in force; device: as in `why_not`."""
    device = device or device_of(args)
    reasons = {}
    for name in order(spec, args, device):
        reason = why_not(spec, name, args, device)
        if reason is None:
            return spec.kernel(name)
        reasons[name] = reason
    told = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    raise BackendError(
        f"{spec.name}: no backend asked for can run this call ({told}). "
        f"Use set_backend('auto') or add torch to the list."
    )


def explain(op: str, *args: Any, **kwargs: Any) -> Explanation:
    """Say which backend and kernel would run `op(*args, **kwargs)`, without running it.

    op: the public name, e.g. "rms_norm"; the arguments are those of the public function.
    Raises ValueError for an unknown op and whatever the op's own checks raise.
    """
    from flashvl_kernels import spec as specs

    if op not in specs.REGISTRY:
        raise ValueError(f"explain: op is {op!r}; needs one of {', '.join(sorted(specs.REGISTRY))}")
    spec, flat = specs.capture(specs.REGISTRY[op].function, *args, **kwargs)
    spec.check(*flat)
    rejected: dict[str, str] = {}
    tried = order(spec, flat, device_of(flat))
    for name in preference(device_of(flat)):
        if name not in tried and why_not(spec, name, flat) is None:
            rejected[name] = SLOWER
    for name in dict.fromkeys((*tried, *NAMES)):
        reason = why_not(spec, name, flat)
        if reason is None:
            more = precision.explained(op, flat) if name == "cpu" else ""
            return Explanation(op, name, spec.kernel(name).name + more, rejected)
        rejected[name] = reason
    raise AssertionError("the torch backend supports every call")


def resolve(spec: OpSpec, name: str) -> Kernel:
    """Find the implementation of `spec` in backend `name`; called once and cached by the spec."""
    if name == "torch":
        return Kernel("torch", f"reference {spec.name}", spec.reference)
    if name == "cpu":
        run = getattr(torch.ops.flashvl_cpu, spec.name).default
        if spec.name in precision.PRODUCTS:
            run = precision.following(run)
        return Kernel("cpu", f"{spec.name}, level {extension.cpu_level()}", run)
    if name == "cuda":
        from flashvl_kernels.cuda import driver

        return Kernel(
            "cuda", f"csrc/cuda/{spec.name}.cuh, by NVRTC", partial(driver.run, spec.name)
        )
    if name == "triton" and name in spec.kernels:
        reason = triton.missing()
        if reason is not None:
            raise BackendError(f"{spec.name}: {reason}")
        return Kernel("triton", spec.name, triton.module(spec.name).run)
    raise BackendError(f"{spec.name}: this version has no {name} kernel")
