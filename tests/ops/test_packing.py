"""Packed weights: the error bound, the layout in memory, the peak of memory, and bad input."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import flashvl_kernels as fvk
from flashvl_kernels import packing
from flashvl_kernels.packing import FORMATS, GROUP, LAYOUTS, QMAX, PackedWeight, pack, project
from flashvl_kernels.spec import Maker

INTEGER = ("int8", "int4")
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@st.composite
def weights(draw: st.DrawFn, rows: tuple[int, ...] = (1, 2, 3, 5, 6)) -> Tensor:
    """Matrices with the rows that break quantisers: zeros, one outlier, subnormals, huge."""
    count, columns = draw(st.sampled_from(rows)), draw(st.integers(1, 300))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    w = torch.randn(count, columns, generator=generator)
    dtype = draw(st.sampled_from(DTYPES))
    top = min(torch.finfo(dtype).max, 3e38)
    for row in range(count):
        kind = draw(st.sampled_from(("plain", "zero", "outlier", "subnormal", "huge", "uniform")))
        if kind == "zero":
            w[row] = 0
        elif kind == "outlier":
            w[row, draw(st.integers(0, columns - 1))] = draw(st.sampled_from((-1, 1))) * top
        elif kind == "subnormal":
            w[row] *= 1e-42
        elif kind == "huge":
            w[row] = w[row].clamp(-4, 4) / 4 * top
        elif kind == "uniform":
            w[row] = draw(st.floats(-9, 9, width=16))
    return w.to(dtype)


def scale_of_each(packed: PackedWeight) -> Tensor:
    """The scale that each weight was divided by, [N, K] in float64."""
    assert packed.scale is not None
    scale = packed.scale.double()
    if packed.format == "int8":
        return scale[:, None].expand(packed.shape)
    return scale.repeat_interleave(GROUP, dim=1)[:, : packed.shape[1]]


@settings(deadline=None, max_examples=150)
@given(w=weights(), format=st.sampled_from(INTEGER))
def test_no_weight_errs_by_more_than_half_a_step(w: Tensor, format: str) -> None:
    packed = pack(w, format)
    error = (w.double() - packed.dequantize(torch.float64)).abs()
    allowed = scale_of_each(packed) * (0.5 + QMAX[format] * 2.0**-23)
    assert (error <= allowed).all(), f"{(error / allowed).max()} of the bound"


@settings(deadline=None, max_examples=60)
@given(w=weights(), format=st.sampled_from(INTEGER), dtype=st.sampled_from(DTYPES))
def test_dequantising_multiplies_in_float32_and_then_rounds(
    w: Tensor, format: str, dtype: torch.dtype
) -> None:
    packed = pack(w, format)
    exact = packed.dequantize(torch.float64)
    assert packed.dequantize(torch.float32).equal(exact.float())
    assert packed.dequantize(dtype).equal(exact.float().to(dtype))


@settings(deadline=None, max_examples=40)
@given(w=weights(), format=st.sampled_from(INTEGER))
def test_packing_what_was_dequantised_changes_nothing(w: Tensor, format: str) -> None:
    once = pack(w, format)
    assert pack(once.dequantize(torch.float32), format).data.equal(once.data)


@pytest.mark.parametrize("format", INTEGER)
def test_rows_of_zeros_stay_zero(format: str) -> None:
    assert pack(torch.zeros(3, 131), format).dequantize(torch.float32).eq(0).all()


def test_int8_layout() -> None:
    packed = pack(torch.tensor([[127.0, -127, 1.4, 0], [0, 254, -3, 5.1]]), "int8")
    assert packed.data.tolist() == [[127, -127, 1, 0], [0, 127, -2, 3]]
    assert packed.scale is not None and packed.scale.tolist() == [1, 2]
    assert packed.data.dtype == torch.int8 and packed.nbytes == 8 + 8


def test_int4_layout_is_low_nibble_first_offset_by_eight() -> None:
    packed = pack(torch.tensor([[7.0, -7, 1, 0, 3]]), "int4")
    assert packed.data.tolist() == [[15 | 1 << 4, 9 | 8 << 4, 11 | 8 << 4]]
    assert packed.scale is not None and packed.scale.tolist() == [[1]]
    assert packed.data.dtype == torch.uint8 and packed.nbytes == 3 + 4


def test_int4_groups_do_not_share_a_scale() -> None:
    w = torch.full((2, 2 * GROUP + 3), 0.5)
    w[0, 5] = 1000.0
    packed = pack(w, "int4")
    assert packed.scale is not None and packed.scale.shape == (2, 3)
    deq = packed.dequantize(torch.float32)
    assert deq[0, 6] == 0, "0.5 is below half a step of its outlier's group"
    torch.testing.assert_close(deq[0, GROUP:], w[0, GROUP:])
    torch.testing.assert_close(deq[1], w[1])


@pytest.mark.parametrize("format", INTEGER)
@pytest.mark.parametrize("columns", [1, 40, 131, 256])
def test_packing_in_blocks_gives_the_same_bits(
    format: str, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    w, x, bias = torch.randn(37, columns), torch.randn(3, columns), torch.randn(37)
    whole = pack(w, format)
    whole_deq, whole_y = whole.dequantize(torch.bfloat16), project(x, *whole.flat(), bias)
    monkeypatch.setattr(packing, "CHUNK_ELEMENTS", 5 * columns)  # blocks of 16, 16 and 5 rows
    blocks = pack(w, format)
    assert whole.scale is not None and blocks.scale is not None
    assert blocks.data.equal(whole.data) and blocks.scale.equal(whole.scale)
    assert blocks.dequantize(torch.bfloat16).equal(whole_deq)
    torch.testing.assert_close(project(x, *blocks.flat(), bias), whole_y)


class _LargestFloat(TorchDispatchMode):
    """The most elements of any float tensor that an operation made."""

    elements = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.is_floating_point() and not out._is_view():
            self.elements = max(self.elements, out.numel())
        return out


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("format", INTEGER)
def test_no_whole_float_copy_is_made(format: str, layout: str) -> None:
    w = torch.randn(2048, 1030).bfloat16()
    bound = packing.CHUNK_ELEMENTS * 5 // 4  # 1030 columns fill nine groups of 128
    assert w.numel() > 6 * bound
    with _LargestFloat() as packing_it:
        packed = pack(w, format, layout)
    with _LargestFloat() as multiplying:
        project(torch.randn(1, 1030), *packed.flat())
    assert 0 < packing_it.elements <= bound
    assert 0 < multiplying.elements <= bound


def test_plain_rows_are_neither_read_nor_copied() -> None:
    w = torch.full((3, 5), torch.nan, dtype=torch.float16)
    packed = pack(w, "bf16")
    assert packed.data is w and packed.nbytes == 30
    assert packed.dequantize(torch.float16) is w
    assert packed.dequantize(torch.float32).dtype == torch.float32


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("format", INTEGER)
def test_no_rows(format: str, layout: str) -> None:
    packed = pack(torch.empty(0, 130), format, layout)
    assert packed.nbytes == 0 and packed.dequantize(torch.float32).shape == (0, 130)
    assert project(torch.ones(2, 130), *packed.flat()).shape == (2, 0)


@pytest.mark.parametrize("format", INTEGER)
@pytest.mark.parametrize(
    ("value", "told"),
    [
        (torch.nan, "NaN"),
        (torch.inf, "a magnitude of inf"),
        (-torch.inf, "a magnitude of inf"),
    ],
)
def test_weights_that_are_not_finite(
    format: str, value: float, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "CHUNK_ELEMENTS", 300)  # blocks of 16 rows
    w = torch.randn(48, 150)
    w[39, 149] = value
    for layout in LAYOUTS:
        with pytest.raises(ValueError, match=f"pack: w holds {told} in row 39; needs finite"):
            pack(w, format, layout)


def test_the_last_magnitude_of_float32_is_refused_and_not_packed_to_inf() -> None:
    """127 * (max / 127) rounds up past max."""
    w = torch.full((1, 4), torch.finfo(torch.float32).max)
    with pytest.raises(ValueError, match=r"a magnitude of 3\.402823e\+38 in row 0"):
        pack(w, "int8")
    with pytest.raises(ValueError, match="a magnitude of inf in row 0"):
        pack(w.double() * 2, "int4")


@pytest.mark.parametrize(
    ("w", "format", "error", "told"),
    [
        (torch.ones(2, 3), "int2", ValueError, "format is 'int2'; needs one of bf16, int8, int4"),
        (torch.ones(2, 3).int(), "int8", TypeError, "w has dtype int32"),
        (torch.ones(3), "int8", ValueError, r"w has shape \[3\]; needs 2 axes \[N, K\]"),
        (torch.ones(2, 0), "int4", ValueError, r"w has shape \[2, 0\]; needs at least one column"),
    ],
)
def test_what_cannot_be_packed(w: Tensor, format: str, error: type, told: str) -> None:
    with pytest.raises(error, match=told):
        pack(w, format)


@pytest.mark.parametrize(
    ("format", "data", "scale", "shape", "told"),
    [
        (
            "int2",
            torch.zeros(2, 6),
            None,
            (2, 6),
            "format is 'int2'; needs one of bf16, int8, int4",
        ),
        ("int8", torch.zeros(2, 6).to(torch.int8), None, (2, 6), "scale None; needs float32"),
        ("int8", torch.zeros(2, 6), torch.ones(2), (2, 6), "data of float32"),
        ("int8", torch.zeros(2, 6).to(torch.int8), torch.ones(2, 1), (2, 6), r"\[2, 1\]"),
        ("int8", torch.zeros(2, 6).to(torch.int8), torch.ones(2), (3, 6), r"shape is \(3, 6\)"),
        ("int4", torch.zeros(2, 6).byte(), torch.ones(2, 1), (2, 13), r"needs uint8 \[2, 7\]"),
        ("int4", torch.zeros(2, 70).byte(), torch.ones(2, 1), (2, 140), r"float32 \[2, 2\]"),
        ("bf16", torch.zeros(2, 6), torch.ones(2), (2, 6), "with a scale"),
        ("bf16", torch.zeros(2, 6), None, (2, 7), "as 7 columns"),
    ],
)
def test_parts_that_do_not_fit(
    format: str, data: Tensor, scale: Tensor | None, shape: tuple[int, int], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        PackedWeight(format, data, scale, shape)


def at(format: str, data: Tensor, n: int, k: int) -> int | float:
    """Weight (n, k) as csrc/cpu/matrix/weights.h places it in panels: the float, or q."""
    flat, lane = data[n - n % 16 : n - n % 16 + 16].flatten(), n % 16
    if format == "bf16":
        return float(flat[k // 2 * 32 + lane * 2 + k % 2])
    if format == "int8":
        return int(flat[k // 4 * 64 + lane * 4 + k % 4]) - 128
    byte = int(flat[k // 8 * 64 + lane * 4 + k % 4])
    return (byte >> 4 if k % 8 >= 4 else byte & 15) - 8


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("rows", "columns"), [(16, 128), (48, 37), (32, 300), (16, 1)])
def test_panels_lie_as_the_kernels_read_them(format: str, rows: int, columns: int) -> None:
    w = torch.randn(rows, columns)
    plain, panels = pack(w, format), pack(w, format, "panels")
    whole = 128 if format == "int4" else 32
    padded = (columns + whole - 1) // whole * whole
    assert panels.data.shape == (rows, padded // 2 if format == "int4" else padded)
    assert panels.data.is_contiguous() and panels.shape == plain.shape
    steps = torch.ones(rows, columns)
    if plain.scale is not None:
        steps = scale_of_each(plain).float()
    want = (plain.dequantize(torch.float32) / steps).round_() if plain.scale is not None else w
    for n in range(rows):
        for k in range(padded):
            expected = float(want[n, k]) if k < columns else 0
            assert at(format, panels.data, n, k) == expected, (n, k)


def test_scales_of_panels() -> None:
    w = torch.randn(32, 3 * GROUP)
    eight, four = pack(w, "int8", "panels"), pack(w, "int4", "panels")
    assert eight.scale is not None and four.scale is not None
    assert torch.equal(eight.scale, pack(w, "int8").scale)
    rows = pack(w, "int4").scale
    assert rows is not None and four.scale.shape == rows.shape == (32, 3)
    assert torch.equal(four.scale.flatten()[48 + 16 * 2 + 5], rows[16 + 5, 2])
    assert torch.equal(four.scale.view(2, 3, 16).transpose(1, 2).reshape(32, 3), rows)


@settings(deadline=None, max_examples=60)
@given(
    w=weights(rows=(16, 32)), format=st.sampled_from(FORMATS),
    dtype=st.sampled_from((*DTYPES, torch.float64)),
)  # fmt: skip
def test_panels_stand_for_the_same_matrix(w: Tensor, format: str, dtype: torch.dtype) -> None:
    panels, rows = pack(w, format, "panels"), pack(w, format)
    assert panels.dequantize(dtype).equal(rows.dequantize(dtype))
    assert panels.to("cpu").layout == "panels"
    x = torch.randn(2, w.shape[1], dtype=torch.float64)
    assert project(x, *panels.flat()).shape == (2, w.shape[0])


@pytest.mark.parametrize("make", [
    lambda w: w.t().contiguous().t(), lambda w: torch.cat((w, w), 1)[:, : w.shape[1]],
    lambda w: torch.cat((w.new_zeros(1), w.flatten()))[1:].view(w.shape), lambda w: w.double(),
])  # fmt: skip
def test_panels_of_strided_weights(make: Any) -> None:
    w = torch.randn(32, 70).bfloat16()
    for format in FORMATS:
        want = pack(w, format, "panels").dequantize(torch.float64)
        assert pack(make(w), format, "panels").dequantize(torch.float64).equal(want)


def test_a_cast_of_float_panels_is_the_panels_of_the_cast() -> None:
    w = torch.randn(16, 50)
    panels = pack(w, "bf16", "panels")
    assert panels.data.bfloat16().equal(pack(w.bfloat16(), "bf16", "panels").data)
    assert panels.data.double().equal(pack(w.double(), "bf16", "panels").data)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_ops_compute_the_same_with_panels(format: str, dtype: torch.dtype) -> None:
    m = Maker(dtype)
    x, gate_up, down = m.normal(3, 80), m.normal(96, 80), m.normal(80, 48)

    norm, bias = m.normal(80), m.normal(96)

    def run(layout: str) -> list[Tensor]:
        a, b = pack(gate_up, format, layout), pack(down, format, layout)
        hidden = fvk.linear(x, a, bias)
        values, _ = fvk.argmax_head(x, norm, a, k=96)
        return [hidden, fvk.swiglu_mlp(x, norm, a, b), values]

    with fvk.backend("torch"):
        for got, want in zip(run("panels"), run("rows"), strict=True):
            assert torch.equal(got, want)


def test_gradients_pass_through_float_panels() -> None:
    x, w = torch.randn(3, 40, dtype=torch.float64), torch.randn(32, 40, dtype=torch.float64)
    data = pack(w, "bf16", "panels").data.requires_grad_()
    x.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda a, b: project(a, b, None, "bf16_panels", 40), (x, data), fast_mode=True
    )


@pytest.mark.parametrize(
    ("rows", "format", "layout", "told"),
    [
        (24, "bf16", "panels", "w has 24 rows; needs a multiple of 16 for panels"),
        (7, "int4", "panels", "w has 7 rows; needs a multiple of 16 for panels"),
        (16, "int8", "tiles", "layout is 'tiles'; needs one of rows, panels"),
    ],
)
def test_what_has_no_panels(rows: int, format: str, layout: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        pack(torch.ones(rows, 3), format, layout)


@pytest.mark.parametrize(
    ("format", "data", "scale", "shape", "told"),
    [
        ("bf16", torch.zeros(24, 32), None, (24, 30), "24 rows; needs a multiple of 16"),
        ("bf16", torch.zeros(16, 30), None, (16, 30), r"needs \[16, 32\] for 30 columns of bf16_p"),
        ("bf16", torch.zeros(16, 32), torch.ones(16), (16, 32), r"has a scale \[16\]; needs none"),
        ("bf16", torch.zeros(16, 32).int(), None, (16, 32), "dtype int32"),
        ("int8", torch.zeros(16, 32).to(torch.int8), torch.ones(16), (16, 32), "needs uint8"),
        ("int8", torch.zeros(16, 64).byte(), torch.ones(16), (16, 32), r"\[16, 32\] for 32 col"),
        ("int4", torch.zeros(16, 32).byte(), torch.ones(16, 1), (16, 64), r"\[16, 64\] for 64 c"),
        ("int4", torch.zeros(16, 64).byte(), None, (16, 64), "scale None"),
    ],
)
def test_parts_of_panels_that_do_not_fit(
    format: str, data: Tensor, scale: Tensor | None, shape: tuple[int, int], told: str
) -> None:
    with pytest.raises((ValueError, TypeError), match=told):
        PackedWeight(format, data, scale, shape, "panels")


@pytest.mark.parametrize("field", ["data", "scale"])
def test_a_number_is_not_a_weight(field: str) -> None:
    weight = pack(torch.randn(16, 32), "int8")
    with pytest.raises(TypeError, match=f"PackedWeight: {field} is a float"):
        dataclasses.replace(weight, **{field: 1.5})
