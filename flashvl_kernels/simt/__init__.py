"""Runs the CUDA kernels on the CPU: csrc/simt behind the launch plans of `flashvl_kernels.cuda`.

`call(spec, flat)` computes an op as its CUDA backend would and returns, beside the outputs, what
the launches moved and what was wrong with them. A kernel is executed thread by thread: results,
findings and counts are real, times would mean nothing and are not taken.
Needs a checkout of the repository, g++ and pybind11; `unavailable()` says what is missing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from flashvl_kernels import numerics
from flashvl_kernels.cuda import kernels_of, plan_module
from flashvl_kernels.cuda.device import H100, Device
from flashvl_kernels.cuda.launch import Launch, Prepared
from flashvl_kernels.simt.build import SimtError, build, sanitized, unavailable
from flashvl_kernels.spec import OpSpec

__all__ = [
    "Finding",
    "Result",
    "SimtError",
    "build",
    "call",
    "module",
    "run",
    "sanitized",
    "unavailable",
]

SECTOR_BYTES = 32
_MAXIMA = ("shared_bytes",)  # a block's, not a sum over launches


@dataclass(frozen=True)
class Finding:
    """Something wrong with a kernel. kind: as docs/cuda.md lists them; where: file:line; count:
    how often it happened there; text: the first time, and what to do."""

    kind: str
    where: str
    text: str
    count: int

    def __str__(self) -> str:
        return f"{self.where}: {self.kind} ({self.count} times): {self.text}"


@dataclass
class Result:
    """What launches did: `counters` are those of csrc/simt/report.h, summed over the launches.

    mutated: the float arguments of an op that writes into some of them, as the launches left them.
    """

    outputs: tuple[Tensor, ...] = ()
    mutated: tuple[Tensor, ...] = ()
    counters: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)
    launches: tuple[Launch, ...] = ()

    @property
    def bytes_from_memory(self) -> int:
        """32-byte sectors touched, each once a launch and direction: a cache that never forgets."""
        c = self.counters
        return SECTOR_BYTES * (c["unique_read_sectors"] + c["unique_write_sectors"])

    @property
    def bytes_moved(self) -> int:
        """32-byte sectors of every instruction: without any cache."""
        return SECTOR_BYTES * (self.counters["read_sectors"] + self.counters["write_sectors"])

    @property
    def sector_efficiency(self) -> float:
        """Bytes asked for over bytes of the sectors they lie in; 1 without traffic."""
        asked = self.counters["global_read_bytes"] + self.counters["global_write_bytes"]
        return asked / self.bytes_moved if self.bytes_moved else 1.0


def module(op: str) -> ModuleType:
    """The build of csrc/cuda/<op>.cuh with every instance of its plan."""
    plan = plan_module(op)
    if plan is None:
        raise SimtError(f"simt: {op} has no CUDA kernel: flashvl_kernels/cuda/{op}.py is missing")
    source = kernels_of(op)
    return build(f'#include "cuda/{source}.cuh"', plan.instances(), f"csrc/cuda/{source}.cuh")


def call(
    spec: OpSpec, flat: Sequence[Any], device: Device = H100, built: ModuleType | None = None
) -> Result:
    """Run `spec` on schema arguments as its CUDA backend would on `device`.

    An op that writes into its arguments is given copies of them. Scratch memory holds NaN (or the
    largest integer) until a launch writes it.
    built: another build of the kernels (a test's mutation of them).
    """
    plan = plan_module(spec.name)
    if plan is None:
        raise SimtError(f"simt: {spec.name} has no CUDA kernel")
    mine = numerics.duplicate(flat) if spec.mutates else tuple(flat)
    with numerics.poisoned():
        prepared = plan.prepare(mine, device)
    result = run(prepared, built or module(spec.name), device)
    if spec.mutates:
        result.mutated = tuple(
            arg for arg in mine if isinstance(arg, Tensor) and arg.is_floating_point()
        )
    return result


def run(prepared: Prepared, built: ModuleType, device: Device = H100) -> Result:
    """Run the launches of a prepared call. What no launch writes stays NaN (or -1)."""
    result = Result(prepared.outputs, launches=prepared.launches)
    for output in prepared.outputs:
        output.fill_(float("nan") if output.is_floating_point() else -1)
    tensors = [
        (name, tensor.data_ptr(), span_bytes(tensor), name in prepared.written)
        for name, tensor in prepared.tensors.items()
    ]
    for launch in prepared.launches:
        counters, findings = built.launch(
            launch.kernel.expression,
            launch.grid,
            launch.block,
            launch.shared_bytes,
            device.shared_bytes_per_block,
            bytes(launch.arguments),
            tensors,
        )
        for name in _MAXIMA:
            counters[name] = max(counters[name] - result.counters[name], 0)
        result.counters.update(counters)
        result.findings += [Finding(*found) for found in findings]
    return result


def results(spec: OpSpec, flat: Sequence[Any]) -> list[Tensor]:
    """What `call` returns, as `numerics.results` does for a function on the CPU."""
    result = call(spec, flat)
    return [*result.outputs, *result.mutated]


def span_bytes(tensor: Tensor) -> int:
    """Bytes from the first element of a tensor to behind its last one, whatever its strides."""
    if tensor.numel() == 0:
        return 0
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    last = sum((size - 1) * stride for size, stride in steps)
    return (last + 1) * tensor.element_size()


DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
