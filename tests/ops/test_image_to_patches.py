"""image_to_patches: the resize equals Pillow's bit by bit, the layout is what its doc says."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, __version__
from torch import Tensor

from flashvl_kernels.ops.image_to_patches import image_to_patches
from flashvl_kernels.tiles import TileGrid

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
# From version 13 on, Pillow resizes the rows first where that saves much (its change 9549).
PILLOW_HAS_BOTH_ORDERS = int(__version__.split(".")[0]) >= 13


def noise(height: int, width: int, hard: bool) -> Tensor:
    """Random bytes; `hard` ones are 0 or 255, so that the filter overshoots at both ends."""
    image = torch.randint(
        0, 256, (height, width, 3), generator=torch.Generator().manual_seed(height * 9973 + width)
    )
    return (image // 128 * 255 if hard else image).to(torch.uint8)


def to_pillow(image: Tensor) -> Image.Image:
    height, width, _ = image.shape
    return Image.frombytes("RGB", (width, height), bytes(image.flatten().tolist()))


def from_pillow(image: Image.Image) -> Tensor:
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.view(image.height, image.width, 3)


def rows_first(height: int, width: int, new_height: int, new_width: int) -> bool:
    """Pillow 13's rule."""
    return height > new_height and height - new_height > 2 * (width - new_width)


def resized(image: Tensor, height: int, width: int) -> Tensor:
    """Our resize alone: one tile of one patch whose pixels are not scaled.

    The canvas is square unless tiles are stacked, so stack tiles of the common divisor.
    """
    side = _gcd(height, width)
    grid = TileGrid(height // side, width // side, 1)
    flat = image_to_patches(image, grid, (0, 0, 0), (1 / 255,) * 3, side)
    tiles = flat.view(grid.rows, grid.cols, 3, side, side).permute(0, 3, 1, 4, 2)
    return tiles.reshape(height, width, 3).round().to(torch.uint8)


def _gcd(a: int, b: int) -> int:
    return a if b == 0 else _gcd(b, a % b)


def pillow_axis_by_axis(image: Tensor, height: int, width: int) -> Tensor:
    """Two calls, each of one pass: the same in every version of Pillow."""
    picture = to_pillow(image)
    if rows_first(picture.height, picture.width, height, width):
        middle = (picture.width, height)
    else:
        middle = (width, picture.height)
    picture = picture.resize(middle, Image.Resampling.BICUBIC)
    return from_pillow(picture.resize((width, height), Image.Resampling.BICUBIC))


def assert_equals_pillow(image: Tensor, height: int, width: int) -> None:
    got = resized(image, height, width)
    assert torch.equal(got, pillow_axis_by_axis(image, height, width))
    if PILLOW_HAS_BOTH_ORDERS:
        whole = to_pillow(image).resize((width, height), Image.Resampling.BICUBIC)
        assert torch.equal(got, from_pillow(whole))


side = st.one_of(st.integers(1, 8), st.integers(1, 90))


@settings(deadline=None, max_examples=150, derandomize=True)
@given(side, side, side, side, st.booleans())
@example(1, 1, 5, 7, True)
@example(64, 120, 64, 128, True)
@example(33, 64, 70, 64, True)
@example(40, 40, 40, 40, False)
@example(60, 30, 40, 20, True)  # rows lose exactly twice as much: columns first
@example(61, 30, 40, 20, True)  # one more: rows first
def test_resize_equals_pillow(h: int, w: int, new_h: int, new_w: int, hard: bool) -> None:
    assert_equals_pillow(noise(h, w, hard), new_h, new_w)


@pytest.mark.parametrize(
    ("height", "width", "new_height", "new_width"),
    [(1, 10000, 28, 28), (10000, 1, 28, 28), (1, 10000, 3, 12000), (2500, 17, 1, 600)],
)
def test_extreme_sizes_equal_pillow(
    height: int, width: int, new_height: int, new_width: int
) -> None:
    assert_equals_pillow(noise(height, width, True), new_height, new_width)


@pytest.mark.parametrize("grid", [TileGrid(2, 3, 4, 1), TileGrid(3, 1, 5, 2, "mean", 2)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tiles_overlap_and_patches_are_channel_row_column(
    grid: TileGrid, dtype: torch.dtype
) -> None:
    patch, image = 3, noise(50, 41, False)
    height, width = (n * patch for n in grid.canvas_full)
    canvas = pillow_axis_by_axis(image, height, width)
    value = (canvas.float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    got = image_to_patches(image, grid, MEAN, STD, patch, dtype)
    assert got.shape == (grid.tiles, grid.tile_len, 3 * patch * patch)
    for tile in range(grid.tiles):
        top, left = grid.tile_origin(tile)
        for place in range(grid.tile_len):
            row = (top + place // grid.tile) * patch
            col = (left + place % grid.tile) * patch
            block = value[row : row + patch, col : col + patch]
            assert torch.equal(got[tile, place], block.permute(2, 0, 1).flatten().to(dtype))


def test_a_cropped_view_is_read_in_place() -> None:
    image, grid = noise(60, 70, False), TileGrid(1, 2, 4)
    view = image[7:50, 11:62]
    whole = image_to_patches(view.contiguous(), grid, MEAN, STD, 4)
    assert torch.equal(image_to_patches(view, grid, MEAN, STD, 4), whole)


def test_patches_feed_the_encoder_as_its_convolution_would() -> None:
    """A patch row times the flattened kernel is the strided convolution of the pixel values."""
    grid, patch = TileGrid(1, 1, 4), 6
    weight = torch.randn(8, 3, patch, patch, generator=torch.Generator().manual_seed(0))
    rows = image_to_patches(noise(31, 24, False), grid, MEAN, STD, patch)
    pixels = rows.view(4, 4, 3, patch, patch).permute(2, 0, 3, 1, 4).reshape(1, 3, 24, 24)
    expected = torch.nn.functional.conv2d(pixels, weight, stride=patch).flatten(2).transpose(1, 2)
    torch.testing.assert_close(rows @ weight.flatten(1).T, expected, rtol=1e-4, atol=1e-4)


def test_integer_images_carry_no_gradient() -> None:
    assert not image_to_patches(noise(8, 8, False), TileGrid(1, 1, 2), MEAN, STD, 4).requires_grad
