"""Launches to ask about: of every kernel template, two shapes, as small as samples have them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

import torch

from flashvl_kernels.cuda import plan_module
from flashvl_kernels.cuda.device import H100
from flashvl_kernels.cuda.launch import Launch, Prepared
from flashvl_kernels.simt.build import CSRC
from flashvl_kernels.spec import REGISTRY, OpSpec, capture

SMALL = replace(H100, name="2 multiprocessors", multiprocessors=2)
"""Where a few rows are many: the plans for full grids, in few blocks."""
DTYPES = (torch.bfloat16, torch.float32)
"""fp16 is bf16 with other conversions: the same accesses, the same barriers."""
THREADS = 2048
"""Of a launch, at most: the time of a proof grows with the pairs of accesses."""
SHAPES = 2


def specs() -> list[OpSpec]:
    """Every op with a CUDA kernel."""
    return [spec for spec in REGISTRY.values() if (CSRC / "cuda" / f"{spec.name}.cuh").is_file()]


def threads(launch: Launch) -> int:
    """Of all blocks."""
    total = 1
    for size in (*launch.grid, *launch.block):
        total *= size
    return total


def shape(launch: Launch) -> str:
    """Grid, block and dynamic shared memory in words."""
    grid, block = ("x".join(map(str, size)) for size in (launch.grid, launch.block))
    return f"grid {grid}, block {block}, {launch.shared_bytes} bytes"


def calls(spec: OpSpec) -> Iterator[tuple[Prepared, Launch]]:
    """Every launch of the op's small samples, with its call."""
    plan = plan_module(spec.name)
    assert plan is not None
    for sample in [s for s in spec.samples if s.kind in ("typical", "edge", "strided")]:
        for dtype in DTYPES:
            built = sample.build(dtype)
            _, flat = capture(spec.function, *built.args, **built.kwargs)
            if spec.kernels["cuda"](*flat) is not None:  # refused
                continue
            for device in (SMALL, H100):
                prepared = plan.prepare(flat, device)
                for launch in prepared.launches:
                    yield prepared, launch


def template(kernel: str) -> str:
    """The kernel without its numbers: one template, one type."""
    return re.sub(r"\b\d+\b", "n", kernel)


def smallest(spec: OpSpec) -> dict[str, tuple[Prepared, Launch]]:
    """By kernel and shape: of each template, the two shapes of fewest threads above one warp."""
    found: dict[str, dict[str, tuple[Prepared, Launch]]] = {}
    for prepared, launch in calls(spec):
        if 32 < threads(launch) <= THREADS:
            key = f"{launch.kernel.expression}, {shape(launch)}"
            found.setdefault(template(launch.kernel.expression), {}).setdefault(
                key, (prepared, launch)
            )
    chosen = {}
    for launches in found.values():
        by_size = sorted(launches.items(), key=lambda item: threads(item[1][1]))
        chosen.update(by_size[:SHAPES])
    return chosen
