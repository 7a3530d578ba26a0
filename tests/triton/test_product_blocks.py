"""The blocks of a product: every column in one part, shared memory that the device has."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from flashvl_kernels import numerics, triton

if reason := triton.missing():
    pytest.skip(reason, allow_module_level=True)

from flashvl_kernels.gpu import EMULATED, MI300X, RTX_3090, RTX_5090, Device
from flashvl_kernels.ops import swiglu_mlp
from flashvl_kernels.spec import Maker, capture
from flashvl_kernels.triton import product

DEVICES = [
    EMULATED,
    RTX_3090,
    RTX_5090,
    MI300X,
    replace(RTX_3090, multiprocessors=1),
]


@pytest.mark.parametrize("device", DEVICES, ids=lambda d: f"{d.arch}-{d.multiprocessors}")
@pytest.mark.parametrize("columns", [1, 16, 127, 129, 1100, 1536, 8960])
@pytest.mark.parametrize(("rows", "units"), [(1, 8), (3, 1536), (40, 2048), (1024, 4304)])
@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("gated", [False, True])
def test_parts_hold_every_column_once(
    rows: int, units: int, columns: int, itemsize: int, gated: bool, device: Device
) -> None:
    shape = product.blocks(rows, units, columns, itemsize, device, gated=gated)
    assert (shape.splits - 1) * shape.part < columns <= shape.splits * shape.part
    assert shape.part % shape.step == 0 and 128 % shape.step == 0
    stage = (shape.rows + shape.units * (1 + gated)) * shape.step * itemsize
    kept = shape.stages - device.amd  # AMD's last one is in registers
    assert stage * kept <= device.shared_bytes_per_block


def test_one_row_fills_the_device_and_many_are_not_split() -> None:
    one = product.blocks(1, 1536, 8960, 2, EMULATED)
    assert one.splits * 1536 // one.units > EMULATED.multiprocessors // 2
    assert product.blocks(1024, 17920, 1536, 2, EMULATED).splits == 1


@pytest.mark.parametrize("weight", ["bf16", "int8", "int4"])
def test_the_halved_step_of_a_gated_product_is_right(
    weight: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which other tests do not run, because they launch as for an H100."""
    import semantics

    monkeypatch.setattr("flashvl_kernels.triton.launch.describe", lambda _: RTX_5090)
    assert product.blocks(40, 128, 256, 2, RTX_5090, gated=True).step == 32
    m = Maker(torch.bfloat16, "cpu")
    formats = () if weight == "bf16" else (weight, weight)
    built = swiglu_mlp._mlp(m, m.normal(40, 256), 128, *formats)
    flat = capture(swiglu_mlp.SPEC.function, *built.args, **built.kwargs)[1]
    with semantics.executed():
        got = numerics.results(swiglu_mlp.SPEC, triton.module("swiglu_mlp").run, flat)
    assert not semantics.wrong(swiglu_mlp.SPEC, flat, got)
