"""The order in which `auto` tries backends on a GPU is that of the figures in docs/results."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import pytest
import torch

from flashvl_kernels import backend, backends, fastest
from flashvl_kernels.shapes import meta_call
from flashvl_kernels.spec import REGISTRY

WITHIN = {"stitched_tile_attention": 1.2}
"""Triton's blended case took 340 µs then, and 231 since it runs on wgmma (docs/ladders/h100.md)."""
RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results" / "ops-h100.json"


def measured() -> dict[tuple[str, str], dict[str, float]]:
    """Seconds of every call that was measured in bf16, by backend."""
    found: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for row in json.loads(RESULTS.read_text())["rows"]:
        if row["status"] == "ok" and row["dtype"] == "bf16":
            found[row["op"], row["sample"]] |= {
                row["backend"]: row["median"], "torch": row["plain_median"]
            }  # fmt: skip
    return found


def arguments(op: str, name: str) -> tuple[Any, ...] | None:
    """Schema arguments of a bench sample; None where a later version has no such sample."""
    for sample in REGISTRY[op].samples:
        if sample.kind == "bench" and sample.name == name:
            return meta_call(REGISTRY[op], sample, torch.bfloat16)
    return None


@pytest.mark.parametrize("op", REGISTRY)
def test_auto_is_close_to_the_fastest(op: str) -> None:
    """Over the calls of an op, mostly within an eighth of always knowing the fastest."""
    regret = []
    for (name, sample), seconds in measured().items():
        flat = arguments(name, sample) if name == op else None
        if flat is not None:
            taken = next(each for each in fastest.order(op, flat) if each in seconds)
            regret.append(seconds[taken] / min(seconds.values()))
    assert len(regret) >= 2
    assert geometric_mean(regret) <= WITHIN.get(op, 1.125), regret


@pytest.mark.parametrize("op", REGISTRY)
def test_every_order_ends_where_every_call_is_supported(op: str) -> None:
    for sample in REGISTRY[op].samples:
        if sample.kind == "bench":
            order = fastest.order(op, meta_call(REGISTRY[op], sample, torch.bfloat16))
            assert order[-1] == "torch"
            assert set(order) <= {"cuda", "triton", "torch"} and len(set(order)) == len(order)


def test_only_auto_looks_at_the_call() -> None:
    spec = REGISTRY["image_to_patches"]
    flat = meta_call(spec, spec.samples[0], torch.bfloat16)
    assert backends.order(spec, flat, "cuda") == ("cuda", "triton", "torch")
    with backend("triton,torch"):
        assert backends.order(spec, flat, "cuda") == ("triton", "torch")
    assert backends.order(spec, flat, "cpu") == backends.preference("cpu")
