"""A uint8 image, resized, cut into overlapping tiles, normalised and laid out as GEMM-ready rows.

The resize is Pillow 13's antialiased bicubic, bit for bit: a cubic with a = -0.5 (Keys, 1981) whose
support grows with the reduction, weights rounded to 22-bit fixed point, one pass an axis, each
rounded to uint8, and none along an axis that keeps its size. Integer weights times bytes stay far
below 2^53, so a float64 matrix product adds them up exactly, in any order, on any device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from flashvl_kernels import checks, triton
from flashvl_kernels.cuda import image_to_patches as cuda_plan
from flashvl_kernels.spec import Cost, Maker, OpSpec, Sample, call, nbytes
from flashvl_kernels.tiles import TileGrid

# Outputs a matrix product makes at once. A block reads block * scale + 4 * scale inputs, so 16
# multiplies 1.25 times the bytes needed to float64 and fills 1/5 of its matrix.
_BLOCK = 16
_FRACTION = 22  # bits after the point in Pillow's weights


def _parse(fields: tuple[Any, ...]) -> tuple[TileGrid, list[float], list[float], int, torch.dtype]:
    """The schema arguments after the image: grid, mean, std, patch, dtype."""
    mean, std, patch, dtype = fields[6:]
    return TileGrid.from_flat(fields[:6]), mean, std, patch, dtype


def check(image: Tensor, *fields: Any) -> None:
    op = "image_to_patches"
    if image.dtype != torch.uint8:
        raise TypeError(
            f"{op}: image_u8 has dtype {checks.name(image.dtype)}; needs uint8. "
            f"Scale it to 0..255, round it and convert it with .to(torch.uint8)."
        )
    checks.rank(op, "image_u8", image, "[H, W, 3]")
    if image.shape[2] != 3 or image.shape[0] < 1 or image.shape[1] < 1:
        checks.fail(
            op,
            "image_u8",
            f"has shape {list(image.shape)}",
            "[H, W, 3] with at least one pixel",
            "Convert it to RGB, channels last.",
        )
    _, mean, std, patch, dtype = _parse(fields)
    for argument, values in (("mean", mean), ("std", std)):
        if len(values) != 3 or not all(math.isfinite(value) for value in values):
            checks.fail(
                op,
                argument,
                f"is {list(values)}",
                "three finite numbers, for red, green and blue",
                "The models use 0.5 or CLIP's mean and std.",
            )
    for value in std:
        checks.positive(op, "std", value)
    if patch < 1:
        checks.fail(op, "patch", f"is {patch}", "at least 1 pixel", "The models use 14 or 16.")
    if dtype not in checks.COMPUTE_DTYPES:
        raise TypeError(
            f"{op}: dtype is {checks.name(dtype)}; needs bfloat16, float16 or float32. "
            f"Pass the dtype of the vision encoder."
        )


def _filter_weights(size: int, out: int) -> tuple[Tensor, Tensor]:
    """First input of each output, int64 [out], and its fixed-point weights, float64 [out, taps]."""
    scale = size / out
    reach = max(scale, 1.0)
    support = 2.0 * reach
    centre = (torch.arange(out, dtype=torch.float64) + 0.5) * scale
    # Pillow truncates towards zero; after the clamp to the image that is the floor.
    first = (centre - support + 0.5).clamp(min=0).long()
    stop = (centre + support + 0.5).long().clamp(max=size)
    taps = torch.arange(int((stop - first).max()))
    place = first[:, None] + taps
    distance = ((place - centre[:, None] + 0.5) * (1.0 / reach)).abs()
    near = ((-0.5 + 2.0) * distance - (-0.5 + 3.0)) * distance * distance + 1.0
    away = (((distance - 5.0) * distance + 8.0) * distance - 4.0) * -0.5
    weight = torch.where(distance < 1.0, near, torch.where(distance < 2.0, away, 0.0))
    weight = torch.where(place < stop[:, None], weight, 0.0)
    # Pillow adds the taps up one after the other; cumsum does too, sum() does not.
    weight = weight / weight.cumsum(1)[:, -1:]
    fixed = weight * float(1 << _FRACTION)
    return first, torch.where(weight < 0, fixed - 0.5, fixed + 0.5).trunc()


# One entry holds out * (16 + 4) * scale doubles: 0.7 MB from 4000 to 1792 pixels.
@lru_cache(maxsize=64)
def _filter_blocks(
    size: int, out: int, device: torch.device
) -> tuple[tuple[int, int, int, Tensor], ...]:
    """The filter as dense matrices: (first output, first input, inputs, [outputs, inputs])."""
    first, weight = _filter_weights(size, out)
    weight = weight / float(1 << _FRACTION)  # a power of two: still exact
    taps = weight.shape[1]
    blocks = []
    for begin in range(0, out, _BLOCK):
        rows, starts = weight[begin : begin + _BLOCK], first[begin : begin + _BLOCK]
        low = int(starts[0])
        span = int(starts[-1]) + taps - low
        matrix = torch.zeros(len(rows), span, dtype=torch.float64)
        matrix.scatter_(1, (starts - low)[:, None] + torch.arange(taps), rows)
        span = min(span, size - low)  # the taps past the last input are zero
        blocks.append((begin, low, span, matrix[:, :span].contiguous().to(device)))
    return tuple(blocks)


def _resize_rows(planes: Tensor, out: int) -> Tensor:
    """uint8 [3, n, width] to uint8 [3, out, width]."""
    channels, size, width = planes.shape
    if size == out:
        return planes
    result = planes.new_empty(channels, out, width)
    for begin, low, span, matrix in _filter_blocks(size, out, planes.device):
        grey = matrix @ planes[:, low : low + span].to(torch.float64)
        result[:, begin : begin + len(matrix)] = _to_grey(grey)
    return result


def _resize_columns(planes: Tensor, out: int) -> Tensor:
    """uint8 [3, height, n] to uint8 [3, height, out]."""
    channels, height, size = planes.shape
    if size == out:
        return planes
    result = planes.new_empty(channels, height, out)
    for begin, low, span, matrix in _filter_blocks(size, out, planes.device):
        part = planes.new_empty((channels, height, span), dtype=torch.float64)
        grey = part.copy_(planes[:, :, low : low + span]).view(-1, span) @ matrix.T
        result[:, :, begin : begin + len(matrix)] = _to_grey(grey).view(channels, height, -1)
    return result


def _to_grey(value: Tensor) -> Tensor:
    """Rounded half up and clipped to 0..255, in place."""
    return value.add_(0.5).floor_().clamp_(0, 255)


def resize(image: Tensor, height: int, width: int) -> Tensor:
    """uint8 [H, W, 3] to uint8 [3, height, width], as Pillow 13's Image.resize(BICUBIC) does."""
    planes = image.permute(2, 0, 1).contiguous()
    if _rows_first(image.shape[0], image.shape[1], height, width):
        return _resize_columns(_resize_rows(planes, height), width)
    return _resize_rows(_resize_columns(planes, width), height)


def _rows_first(height: int, width: int, new_height: int, new_width: int) -> bool:
    """Whether Pillow resizes the rows before the columns (python-pillow/Pillow#9549).

    The two orders differ by the rounding in between. Pillow before 13 always began with the
    columns, but for images over 100 times as tall as wide in 12.x.
    """
    return height > new_height and height - new_height > 2 * (width - new_width)


def reference(image: Tensor, *fields: Any) -> Tensor:
    grid, mean, std, patch, dtype = _parse(fields)
    height, width = grid.canvas_full
    canvas = resize(image, height * patch, width * patch)
    tile = grid.tile
    side, step = tile * patch, (tile - grid.overlap) * patch
    tiles = canvas.unfold(1, side, step).unfold(2, side, step)  # [3, rows, cols, side, side]
    split = tiles.unflatten(4, (tile, patch)).unflatten(3, (tile, patch))
    patches = split.permute(1, 2, 3, 5, 0, 4, 6).contiguous()
    patches = patches.view(grid.tiles, grid.tile_len, 3, patch**2)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    shift, scale = (torch.tensor(v, dtype=wide, device=image.device)[:, None] for v in (mean, std))
    return patches.to(wide).div_(255).sub_(shift).div_(scale).to(dtype).flatten(2)


def fake(image: Tensor, *fields: Any) -> Tensor:
    grid, _, _, patch, dtype = _parse(fields)
    return image.new_empty((grid.tiles, grid.tile_len, 3 * patch * patch), dtype=dtype)


def cost(image: Tensor, *fields: Any) -> Cost:
    grid, _, _, patch, dtype = _parse(fields)
    high, wide = (n * patch for n in grid.canvas_full)
    values = grid.tiles * grid.tile_len * 3 * patch * patch
    height, width = image.shape[0], image.shape[1]
    columns = height * wide * 3 * _taps(width, wide)
    lines = high * wide * 3 * _taps(height, high)
    return Cost(nbytes(image), values * dtype.itemsize, 2 * (columns + lines) + 3 * values)


def _taps(size: int, out: int) -> int:
    """Inputs that one output of a pass adds up."""
    return 0 if size == out else min(size, math.ceil(4 * max(size / out, 1.0)))


_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def _extremes(m: Maker) -> Tensor:
    """Black and white pixels side by side: the filter overshoots on both ends and is clipped."""
    return (m.integers(0, 2, 31, 37, 3) * 255).to(torch.uint8)


def _blank(m: Maker, *shape: int) -> Tensor:
    return m.integers(0, 256, *shape).to(torch.uint8)


SAMPLES = (
    Sample(
        "reduced to one tile",
        lambda m: call(m.image(61, 83), TileGrid(1, 1, 4), *_HALF, 8, m.dtype),
    ),
    Sample(
        "enlarged to overlapping tiles",
        lambda m: call(m.image(20, 33), TileGrid(2, 3, 4, 2), *_CLIP, 6, m.dtype),
    ),
    Sample(
        "width kept",
        lambda m: call(m.image(64, 32), TileGrid(1, 2, 4, 2, "mean"), *_CLIP, 7, m.dtype),
        "edge",
    ),
    Sample(
        "size kept",
        lambda m: call(m.image(24, 24), TileGrid(1, 1, 3, border=1), *_CLIP, 8, m.dtype),
        "edge",
    ),
    Sample(
        "black and white",
        lambda m: call(_extremes(m), TileGrid(2, 2, 4, 1), *_HALF, 5, m.dtype),
        "edge",
    ),
    Sample(
        "one pixel", lambda m: call(m.image(1, 1), TileGrid(1, 1, 3), *_CLIP, 5, m.dtype), "edge"
    ),
    Sample(
        "1 x 10000",
        lambda m: call(m.image(1, 10000), TileGrid(1, 2, 2, 1), *_HALF, 14, m.dtype),
        "edge",
    ),
    Sample(
        "patches of one pixel",
        lambda m: call(m.image(9, 7), TileGrid(2, 1, 4, 2), *_HALF, 1, m.dtype),
        "edge",
    ),
    Sample(
        "one token", lambda m: call(m.image(5, 6), TileGrid(1, 1, 1), *_HALF, 4, m.dtype), "edge"
    ),
    Sample(
        "one token, rows first",
        lambda m: call(m.image(12, 5), TileGrid(1, 1, 1), *_HALF, 4, m.dtype),
        "edge",
    ),
    Sample(
        "one token, size kept",
        lambda m: call(m.image(4, 4), TileGrid(1, 1, 1), *_HALF, 4, m.dtype),
        "edge",
    ),
    Sample(
        "one token, height kept",
        lambda m: call(m.image(4, 9), TileGrid(1, 1, 1), *_HALF, 4, m.dtype),
        "edge",
    ),
    Sample(
        "tall: rows first, in bands",
        lambda m: call(m.image(200, 120), TileGrid(1, 1, 4), *_HALF, 12, m.dtype),
        "edge",
    ),
    Sample(
        "tall, width kept",
        lambda m: call(m.image(90, 24), TileGrid(1, 1, 3), *_CLIP, 8, m.dtype),
        "edge",
    ),
    Sample(
        "reduced to one tile, in parts",
        lambda m: call(m.image(2000, 40), TileGrid(1, 1, 2), *_CLIP, 14, m.dtype),
        "edge",
    ),
    Sample(
        "wide: columns first, in bands",
        lambda m: call(m.image(150, 260), TileGrid(2, 1, 4, 1), *_CLIP, 9, m.dtype),
        "edge",
    ),
    Sample(
        "cropped view",
        lambda m: call(m.image(60, 70)[7:50, 11:62], TileGrid(1, 2, 4), *_CLIP, 4, m.dtype),
        "strided",
    ),
    Sample(
        "channels first in memory, mirrored",
        lambda m: call(
            _blank(m, 3, 40, 50).permute(1, 2, 0)[::2, ::3], TileGrid(1, 1, 4), *_CLIP, 4, m.dtype
        ),
        "strided",
    ),
    Sample(
        "channels first in memory",
        lambda m: call(
            _blank(m, 3, 41, 51).permute(1, 2, 0), TileGrid(1, 1, 4), *_CLIP, 4, m.dtype
        ),
        "strided",
    ),
    Sample(
        "turned a quarter",
        lambda m: call(m.image(60, 90).transpose(0, 1), TileGrid(2, 1, 4), *_CLIP, 4, m.dtype),
        "strided",
    ),
    Sample(
        "turned a quarter, in parts",
        lambda m: call(m.image(40, 1700).transpose(0, 1), TileGrid(1, 1, 2), *_HALF, 6, m.dtype),
        "strided",
    ),
    Sample(
        "a tuple for the grid",
        lambda m: call(_blank(m, 8, 8, 3), (1, 1, 2), *_HALF, 4, m.dtype),
        "hostile",
        error="grid is a tuple; needs a TileGrid",
    ),
    Sample(
        "half a pixel of patch",
        lambda m: call(_blank(m, 8, 8, 3), TileGrid(1, 1, 2), *_HALF, 1.5, m.dtype),
        "hostile",
        error="patch is 1.5, a float; needs an int",
    ),
    Sample(
        "float image",
        lambda m: call(m.normal(8, 8, 3), TileGrid(1, 1, 2), *_HALF, 4, m.dtype),
        "hostile",
        error="image_u8 has dtype (bfloat16|float16|float32|float64); needs uint8",
    ),
    Sample(
        "four channels",
        lambda m: call(_blank(m, 8, 8, 4), TileGrid(1, 1, 2), *_HALF, 4, m.dtype),
        "hostile",
        error=r"image_u8 has shape \[8, 8, 4\]; needs \[H, W, 3\]",
    ),
    Sample(
        "no pixel",
        lambda m: call(_blank(m, 0, 8, 3), TileGrid(1, 1, 2), *_HALF, 4, m.dtype),
        "hostile",
        error="with at least one pixel",
    ),
    Sample(
        "grey image",
        lambda m: call(_blank(m, 8, 8), TileGrid(1, 1, 2), *_HALF, 4, m.dtype),
        "hostile",
        error=r"image_u8 has shape \[8, 8\]; needs 3 axes",
    ),
    Sample(
        "two means",
        lambda m: call(_blank(m, 8, 8, 3), TileGrid(1, 1, 2), (0.5, 0.5), _HALF[1], 4, m.dtype),
        "hostile",
        error="mean is .*; needs three finite numbers",
    ),
    Sample(
        "std zero",
        lambda m: call(
            _blank(m, 8, 8, 3), TileGrid(1, 1, 2), _HALF[0], (0.5, 0.0, 0.5), 4, m.dtype
        ),
        "hostile",
        error="std is 0.0; needs a finite number above 0",
    ),
    Sample(
        "patch zero",
        lambda m: call(_blank(m, 8, 8, 3), TileGrid(1, 1, 2), *_HALF, 0, m.dtype),
        "hostile",
        error="patch is 0; needs at least 1 pixel",
    ),
    Sample(
        "integer patches",
        lambda m: call(_blank(m, 8, 8, 3), TileGrid(1, 1, 2), *_HALF, 4, torch.uint8),
        "hostile",
        error="dtype is uint8; needs bfloat16",
    ),
    Sample(
        "photo to Static 512",
        lambda m: call(m.image(3000, 4000), TileGrid(1, 1, 32), *_HALF, 16, m.dtype),
        "bench",
        family="flash-vl",
    ),
    Sample(
        "photo to Dynamic-ISS 3x4",
        lambda m: call(m.image(3000, 4000), TileGrid(3, 4, 32, 4, "mean"), *_CLIP, 14, m.dtype),
        "bench",
        family="flash-vl",
    ),
    Sample(
        "screenshot to 2x3 tiles",
        lambda m: call(m.image(720, 1280), TileGrid(2, 3, 32), *_CLIP, 14, m.dtype),
        "bench",
        family="internvl",
    ),
)


def _cpu_reason(*args: Any) -> str | None:
    if args and args[-1] == torch.float64:
        return "kernels compute in float32; dtype=torch.float64 runs through the reference"
    return None


SPEC = OpSpec(
    name="image_to_patches",
    schema="(Tensor image, int rows, int cols, int tile, int overlap, str rule, int border, "
    "float[] mean, float[] std, int patch, ScalarType dtype) -> Tensor",
    check=check,
    reference=reference,
    fake=fake,
    cost=cost,
    samples=SAMPLES,
    kernels={
        "cpu": _cpu_reason,
        "cuda": cuda_plan.why_not,
        "triton": triton.supports("image_to_patches"),
    },
    differentiable=False,
)


@SPEC.public
def image_to_patches(
    image_u8: Tensor,
    grid: TileGrid,
    mean: Sequence[float],
    std: Sequence[float],
    patch: int,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Resize an image to the grid's full canvas, cut it into tiles and normalise their patches.

    image_u8: uint8 [H, W, 3] RGB, of any strides. grid: its border ring belongs to the tiles, so
    the image is resized to grid.canvas_full * patch pixels. mean, std: of red, green and blue, on
    the scale 0..1. patch: side of a patch in pixels. dtype: of the result.
    Returns [T, tile*tile, 3*patch*patch]: tiles and patches row-major, a patch as (channel, row,
    column); (v / 255 - mean) / std in fp32, rounded once. The resized v equals Pillow's
    Image.resize(..., BICUBIC). Not differentiable.
    Raises TypeError for dtypes, ValueError for shapes, mean, std and patch.
    """
    layout = checks.instance("image_to_patches", "grid", grid, TileGrid).flat()
    return SPEC(image_u8, *layout, list(mean), list(std), patch, dtype)
