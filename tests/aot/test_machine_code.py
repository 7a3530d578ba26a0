"""What the machine code of the kernels must show: tensor cores where matrices are multiplied, and
16-byte accesses where memory is the bound.

Read from the budget, which test_budget.py holds against the compiler. An op is here as soon as it
has a plan; what cannot keep a rule is in a table, with the reason.
"""

from __future__ import annotations

import json
import re
from functools import cache

import pytest
import torch

from flashvl_kernels.cuda import ahead, resources, sources
from flashvl_kernels.cuda.device import ARCHITECTURES
from flashvl_kernels.shapes import meta_call
from flashvl_kernels.spec import REGISTRY

BUDGET = json.loads(resources.BUDGET.read_text())
INSTANCES = [(op, instance.expression) for op, instance in ahead.kernels()]

TENSOR_CORE_FLOPS_A_BYTE = 16
"""A full-size call with more of them is bound by FLOPs on multiply-adds alone: an L4 does 100 of
them in the time of a byte, and loses half of these to loads, addresses and loops."""

NO_PRODUCTS = {
    r"normalise_kernel<.*>": "writes the rows that a product then reads: bound by their bytes",
}
"""Kernels in 16 bits, of ops that multiply matrices, without tensor cores: pattern, reason."""

_ONE = "one element an access, for strides, widths and addresses that are no multiple of 16 bytes"
NARROW = {
    r"(swiglu|stitch_tiles|merge_image_tokens|rope_qkv)_kernel<\w+, 1\b.*>": _ONE,
    r"(compress_tokens_long|(rms|layer)_norm(_long)?)_kernel<\w+, 1\b.*>": _ONE,
    r"argmax_head_kernel<\w+, \d, false>": _ONE,
}
"""Kernels without 16-byte loads or stores: pattern, reason."""

NARROW_STORES = {
    r"argmax_head_kernel<\w+, \d, true>": "a logit and its word a row, beside a whole vocabulary",
    r"resize_kernel<\d>": "bytes of planes: the lanes of a warp fill a sector",
}
"""Kernels that store what is small beside what they load: pattern, reason."""


def reason(table: dict[str, str], kernel: str) -> str | None:
    return next((why for pattern, why in table.items() if re.fullmatch(pattern, kernel)), None)


def rows(op: str, kernel: str, key: str) -> dict[str, int]:
    """A kernel's figure on every architecture."""
    return {f"sm_{a}": BUDGET[op][f"sm_{a}"][kernel][key] for a in ARCHITECTURES}


@cache
def included(header: str) -> frozenset[str]:
    """The names of the headers that csrc/cuda/<header> takes in, all the way down."""
    path = sources.folder() / header
    names = re.findall(r'^#include "([\w./]+\.cuh)"', path.read_text(), re.MULTILINE)
    below = [str((path.parent / name).resolve().relative_to(sources.folder())) for name in names]
    return frozenset(below).union(*(included(name) for name in below))


def multiplies_matrices(op: str) -> bool:
    return "ptx/mma.cuh" in included(f"{op}.cuh")


@pytest.mark.parametrize("op", resources.compiled_ops())
def test_an_op_with_many_flops_a_byte_has_tensor_cores(op: str) -> None:
    if multiplies_matrices(op):
        return  # some costs depend on lengths, which a call of shapes has not
    spec = REGISTRY[op]
    costs = [
        spec.cost(*meta_call(spec, sample, torch.bfloat16))
        for sample in spec.samples
        if sample.kind == "bench"
    ]
    most = max(cost.flops / cost.bytes for cost in costs)
    assert most < TENSOR_CORE_FLOPS_A_BYTE, f"{most} FLOPs a byte"


@pytest.mark.parametrize(("op", "kernel"), INSTANCES, ids=[kernel for _, kernel in INSTANCES])
def test_products_are_on_tensor_cores(op: str, kernel: str) -> None:
    """In every 16-bit instance; fp32 keeps its 24 bits, which tensor cores would cut to 10."""
    found = rows(op, kernel, "products")
    half = re.search(r"<B?F16\b", kernel) is not None
    if multiplies_matrices(op) and half and reason(NO_PRODUCTS, kernel) is None:
        assert all(found.values()), found
    else:
        assert not any(found.values()), found


@pytest.mark.parametrize(("op", "kernel"), INSTANCES, ids=[kernel for _, kernel in INSTANCES])
def test_accesses_are_16_bytes_wide(op: str, kernel: str) -> None:
    if reason(NARROW, kernel) is not None:
        return
    found = rows(op, kernel, "load")
    assert set(found.values()) == {16}, f"loads: {found}"
    if reason(NARROW_STORES, kernel) is None:
        found = rows(op, kernel, "store")
        assert set(found.values()) == {16}, f"stores: {found}"


@pytest.mark.parametrize("op", resources.ops())
def test_full_size_calls_take_no_narrow_kernel(op: str) -> None:
    for launch in BUDGET[op]["launches"].values():
        assert reason(NARROW, launch["kernel"]) is None, launch


@pytest.mark.parametrize("table", ["NO_PRODUCTS", "NARROW", "NARROW_STORES"])
def test_no_exception_is_stale(table: str) -> None:
    """A pattern that no kernel needs any more must go."""
    for pattern in globals()[table]:
        kernels = [pair for pair in INSTANCES if re.fullmatch(pattern, pair[1])]
        assert kernels, pattern
        if table == "NO_PRODUCTS":
            assert not any(any(rows(*pair, "products").values()) for pair in kernels), pattern
        elif table == "NARROW":
            widths = [
                min(rows(*pair, key).values()) for pair in kernels for key in ("load", "store")
            ]
            assert max(widths) < 16, pattern
        else:
            assert min(min(rows(*pair, "store").values()) for pair in kernels) < 16, pattern
