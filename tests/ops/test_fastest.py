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
from flashvl_kernels.spec import REGISTRY, capture

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


def test_explain_says_that_plain_pytorch_was_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine with a GPU: the kernels would take the call, and are passed over."""
    monkeypatch.setattr(backends, "device_of", lambda _: "cuda")
    monkeypatch.setattr(backends, "why_not", lambda spec, name, args, device=None: None)
    x, w = torch.empty(300, 64, device="meta"), torch.empty(32, 64, device="meta")
    told = backends.explain("linear", x, w)
    assert told.backend == "torch"
    assert told.rejected == {"cuda": backends.SLOWER, "triton": backends.SLOWER}
    few = backends.choose(REGISTRY["linear"], meta_call_of_one_row(), "cuda")
    assert few.backend == "triton"


def meta_call_of_one_row() -> tuple[Any, ...]:
    """A product of one row, which our kernels take."""
    x, w = torch.empty(1, 64, device="meta"), torch.empty(32, 64, device="meta")
    return capture(REGISTRY["linear"].function, x, w)[1]


def test_only_auto_looks_at_the_call() -> None:
    spec = REGISTRY["image_to_patches"]
    flat = meta_call(spec, spec.samples[0], torch.bfloat16)
    assert backends.order(spec, flat, "cuda") == ("cuda", "triton", "torch")
    with backend("triton,torch"):
        assert backends.order(spec, flat, "cuda") == ("triton", "torch")
    assert backends.order(spec, flat, "cpu") == backends.preference("cpu")
