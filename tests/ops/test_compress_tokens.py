"""compress_tokens against what the models it serves compute, written out step by step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from flashvl_kernels.backends import backend
from flashvl_kernels.compression import Compression
from flashvl_kernels.norm import Norm
from flashvl_kernels.ops.compress_tokens import compress_tokens
from flashvl_kernels.ops.layer_norm import layer_norm
from flashvl_kernels.ops.rms_norm import rms_norm
from flashvl_kernels.ops.stitch_tiles import stitch_tiles
from flashvl_kernels.tiles import TileGrid


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(7)).to(dtype)


def internvl(x: Tensor, height: int, width: int, r: int, version: str) -> Tensor:
    """InternVL's way: fold columns, swap, fold rows; v2 swaps back. Its "w" axis holds the rows."""
    n, _, c = x.shape
    y = x.view(n, height, width, c)
    y = y.view(n, height, width // r, c * r).permute(0, 2, 1, 3).contiguous()
    y = y.view(n, width // r, height // r, c * r * r)
    if version == "v2":
        y = y.permute(0, 2, 1, 3).contiguous()
    return y.reshape(n, -1, c * r * r)


@pytest.mark.parametrize("r", [2, 3, 4])
@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("size", [(12, 12), (12, 24)])
def test_internvl_pixel_shuffle(r: int, version: str, size: tuple[int, int]) -> None:
    x = normal(2, size[0] * size[1], 5)
    got = compress_tokens(x, Compression(factor=r, transpose=version == "v1"), size=size)
    assert torch.equal(got, internvl(x, *size, r, version))


@pytest.mark.parametrize("r", [2, 3, 4])
@pytest.mark.parametrize("size", [(27, 27), (5, 11), (12, 24)])
def test_deepseek_vl2_unfold(r: int, size: tuple[int, int]) -> None:
    x = normal(2, size[0] * size[1], 3)
    down, right = -size[0] % r, -size[1] % r
    planes = F.pad(x.view(2, *size, 3), (0, 0, 0, right, 0, down)).permute(0, 3, 1, 2)
    expected = F.unfold(planes, kernel_size=r, stride=r).permute(0, 2, 1)
    how = Compression(factor=r, order="channel_row_col", pad=True)
    assert torch.equal(compress_tokens(x, how, size=size), expected)
    assert expected.shape[1:] == (how.tokens(*size), how.channels(3))


def test_qwen2_vl_merge_normalises_first() -> None:
    """Qwen2-VL: LayerNorm of C, then four neighbours in one row, in the order of its raster."""
    x, weight, bias = normal(1, 6 * 8, 16), normal(16) + 1, normal(16)
    normed = layer_norm(x, weight, bias, 1e-6)[0].view(3, 2, 4, 2, 16)
    expected = torch.stack([normed[i, :, j].reshape(4 * 16) for i in range(3) for j in range(4)])
    how = Compression(norm_first=True)
    got = compress_tokens(x, how, Norm(weight, bias), size=(6, 8))
    torch.testing.assert_close(got[0], expected)  # two kernels may add up in another order


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norm_works_on_the_compressed_channels(dtype: torch.dtype) -> None:
    x, weight, bias = normal(2, 16, 8, dtype=dtype), normal(32, dtype=dtype), normal(32).to(dtype)
    shuffled = internvl(x, 4, 4, 2, "v2")
    with backend("torch"):  # kernels add up in another order
        got = compress_tokens(x, Compression(), Norm(weight, bias, 1e-5))
        assert torch.equal(got, layer_norm(shuffled, weight, bias, 1e-5)[0])
        got = compress_tokens(x, Compression(), Norm(weight))
        assert torch.equal(got, rms_norm(shuffled, weight)[0])


def test_padding_stays_zero_when_the_norm_comes_first() -> None:
    x, norm = normal(1, 9, 2), Norm(normal(2) + 1, normal(2) + 5)
    got = compress_tokens(x, Compression(norm_first=True, pad=True), norm).view(4, 2, 2, 2)
    assert got[3, 0, 1].eq(0).all() and got[3, 1].eq(0).all() and got[3, 0, 0].ne(0).all()


def bin_mean(x: Tensor, out: tuple[int, int]) -> Tensor:
    """Adaptive pooling from its definition: bin i covers floor(i n / m) to ceil((i + 1) n / m)."""
    h, w, _ = x.shape
    return torch.stack(
        [
            x[
                i * h // out[0] : -(-(i + 1) * h // out[0]),
                j * w // out[1] : -(-(j + 1) * w // out[1]),
            ]
            .double()
            .mean((0, 1))
            for i in range(out[0])
            for j in range(out[1])
        ]
    )


def lerp(x: Tensor, out: tuple[int, int]) -> Tensor:
    """Bilinear from its definition: half-pixel centres, clamped at the edges."""
    for axis in (0, 1):
        n, m = x.shape[axis], out[axis]
        rows = []
        for i in range(m):
            at = max((i + 0.5) * n / m - 0.5, 0.0)
            low = min(int(at), n - 1)
            high, t = min(low + 1, n - 1), at - low
            rows.append(x.select(axis, low) * (1 - t) + x.select(axis, high) * t)
        x = torch.stack(rows, axis)
    return x.flatten(0, 1)


sides = st.integers(1, 9)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(sides, sides, sides, sides, st.sampled_from(["adaptive", "bilinear"]), st.booleans())
def test_pooling_to_a_size(h: int, w: int, oh: int, ow: int, kind: str, transpose: bool) -> None:
    x = normal(2, h * w, 3)
    got = compress_tokens(x, Compression(kind, out=(oh, ow), transpose=transpose), size=(h, w))
    expected = (bin_mean if kind == "adaptive" else lerp)(x[1].view(h, w, 3).double(), (oh, ow))
    if transpose:
        expected = expected.view(oh, ow, 3).transpose(0, 1).flatten(0, 1)
    torch.testing.assert_close(got[1].double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("r", [1, 2, 3])
def test_average_is_avg_pool2d(r: int) -> None:
    x = normal(2, 54, 4)
    planes = x.view(2, 6, 9, 4).permute(0, 3, 1, 2)[..., : 9 - 9 % r]
    x = planes.permute(0, 2, 3, 1).flatten(1, 2)
    got = compress_tokens(x, Compression("average", r), size=(6, 9 - 9 % r))
    torch.testing.assert_close(got, F.avg_pool2d(planes, r).flatten(2).transpose(1, 2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_pooling_adds_up_in_fp32(dtype: torch.dtype) -> None:
    """1 + 255 halves of an ulp: a sum kept in the dtype would stay at 1 / 256."""
    x = torch.full((1, 256, 1), torch.finfo(dtype).eps / 2, dtype=dtype)
    x[0, 0] = 1
    expected = torch.tensor((1 + 255 * torch.finfo(dtype).eps / 2) / 256).to(dtype)
    assert compress_tokens(x, Compression("average", 16))[0, 0, 0] == expected
    assert compress_tokens(x, Compression("adaptive", out=(1, 1)))[0, 0, 0] == expected


@pytest.mark.parametrize("how", [Compression(), Compression("average"), Compression("none")])
@pytest.mark.parametrize("rule", ["crop", "mean", "linear"])
def test_a_grid_is_stitched_first(how: Compression, rule: str) -> None:
    grid = TileGrid(2, 3, 6, 2, rule, 1)
    x = normal(12, 36, 4)
    canvas = stitch_tiles(x, grid)
    norm = Norm(normal(how.channels(4)) + 1)
    expected = compress_tokens(canvas, how, norm, size=grid.canvas)
    assert torch.equal(compress_tokens(x, how, norm, grid), expected)


def test_a_blended_canvas_is_rounded_once() -> None:
    """Under mean, then average, bf16 sees one rounding: of the value the oracle has."""
    grid = TileGrid(1, 2, 4, 2, "mean")
    x = normal(2, 16, 64, dtype=torch.bfloat16)
    got = compress_tokens(x, Compression("average"), None, grid)
    truth = compress_tokens(x.double(), Compression("average"), None, grid)
    assert (got.double() - truth).abs().le(2.0**-8 * truth.abs() + 1e-6).all()


def test_a_dropped_cls_token_changes_nothing() -> None:
    x = normal(3, 17, 8)
    assert torch.equal(
        compress_tokens(x[:, 1:], Compression()), compress_tokens(x[:, 1:].clone(), Compression())
    )


@pytest.mark.parametrize(
    "how",
    [
        Compression(factor=1),
        Compression("none"),
        Compression("none", transpose=True),
        Compression("average", 1),
        Compression("adaptive", out=(1, 4)),
        Compression("bilinear", out=(1, 4)),
        Compression(factor=4, pad=True),
    ],
)
def test_the_result_has_its_own_memory(how: Compression) -> None:
    x = normal(1, 4, 2)
    got = compress_tokens(x, how, size=(1, 4))
    before = x.clone()
    got.fill_(7)
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"kind": "unshuffle"}, "Compression.kind is 'unshuffle': it must be one of shuffle"),
        ({"order": "col"}, "Compression.order is 'col'"),
        ({"factor": 0}, "Compression.factor is 0: it must be at least 1"),
        ({"kind": "adaptive"}, r"Compression.out is None: kind 'adaptive' needs \(height, width\)"),
        ({"kind": "bilinear", "out": (3,)}, "Compression.out is"),
        ({"kind": "bilinear", "out": (3, 0)}, "Compression.out is 0: it must be at least 1"),
        ({"out": (3, 3)}, "kind 'shuffle' takes none"),
        ({"kind": "average", "pad": True}, "Compression.pad works with kind 'shuffle'"),
    ],
)
def test_impossible_compressions_name_the_field(fields: dict[str, Any], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        Compression(**fields)


@pytest.mark.parametrize(
    "fields", [{"factor": 2.0}, {"pad": 1}, {"kind": "adaptive", "out": (2.0, 2)}]
)
def test_fields_of_another_type(fields: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=r"Compression\.\w+ is .* it must be"):
        Compression(**fields)


@pytest.mark.parametrize(
    "how",
    [
        Compression(),
        Compression("bilinear", out=(3, 4), transpose=True),
        Compression(factor=3, order="channel_row_col", norm_first=True, pad=True),
    ],
)
def test_flat_round_trip(how: Compression) -> None:
    assert Compression.from_flat(how.flat()) == how


def test_out_may_come_from_json() -> None:
    assert Compression("adaptive", out=[2, 3]) == Compression("adaptive", out=(2, 3))  # type: ignore[arg-type]
