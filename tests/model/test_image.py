"""Grid choice, and what a loaded image becomes; broken and odd files are in tests/hostile."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from flashvl.config import FlashVLConfig, ImagePolicy
from flashvl.image import ImageError, image_to_inputs, load_image, plan

POLICY = ImagePolicy(max_tiles=12, thumbnail=True, tile=32, patch=14)


def internvl_choice(width: int, height: int, most: int, side: int) -> tuple[int, int]:
    """InternVL's rule restated with floats: (rows, cols)."""
    ratios = sorted(
        {(c, r) for n in range(1, most + 1) for c in range(1, n + 1) for r in range(1, n + 1)
         if c * r <= most},
        key=lambda ratio: (ratio[0] * ratio[1], ratio[1]),
    )  # fmt: skip
    best, distance = (1, 1), float("inf")
    for ratio in ratios:
        here = abs(width / height - ratio[0] / ratio[1])
        tie = here == distance and width * height > 0.5 * side**2 * ratio[0] * ratio[1]
        if here < distance or tie:
            best, distance = ratio, here
    return best[1], best[0]


@given(st.integers(1, 4000), st.integers(1, 4000), st.sampled_from([1, 6, 12]))
def test_the_grid_is_internvls(width: int, height: int, most: int) -> None:
    policy = dataclasses.replace(POLICY, max_tiles=most)
    grid = plan(height, width, policy).grids[0]
    assert (grid.rows, grid.cols) == internvl_choice(width, height, most, 448)


@pytest.mark.parametrize(
    ("width", "height", "rows", "cols"),
    [
        (448, 448, 1, 1),
        (634, 634, 2, 2),  # over half of 896 x 896: worth four tiles
        (633, 633, 1, 1),  # just under half
        (4000, 4000, 3, 3),
        (800, 400, 1, 2),
        (4000, 2000, 2, 4),
        (10000, 1, 1, 12),
        (1, 10000, 12, 1),
        (1, 1, 1, 1),
    ],
)
def test_known_choices(width: int, height: int, rows: int, cols: int) -> None:
    grid = plan(height, width, POLICY).grids[0]
    assert (grid.rows, grid.cols) == (rows, cols)


def test_a_small_image_between_two_aspects_takes_the_smaller_grid() -> None:
    """1.5 is as far from 1x1 as from 1x2; only a large image gets the larger grid."""
    policy = dataclasses.replace(POLICY, grids=((1, 2), (1, 1)))
    assert plan(100, 150, policy).grids[0].cols == 1
    assert plan(1000, 1500, policy).grids[0].cols == 2


HALVES = dataclasses.replace(
    POLICY, tile=8, patch=8, max_tiles=9, thumbnail=False, stitch=True, overlap=4, rule="linear"
)


@pytest.mark.parametrize(
    ("height", "width", "rows", "cols"),
    [
        (64, 112, 1, 3),  # 1.75 lies between the 1.5 and 2 of two and three tiles; by number, at 2
        (64, 96, 1, 2),
        (112, 64, 3, 1),
        (128, 128, 3, 3),
        (10, 20, 1, 3),
        (4000, 8000, 1, 3),
    ],
)
def test_the_aspect_of_overlapping_tiles_is_what_they_span(
    height: int, width: int, rows: int, cols: int
) -> None:
    grid = plan(height, width, HALVES).grids[0]
    assert (grid.rows, grid.cols) == (rows, cols)


def test_overlapping_grids_of_one_shape_are_equally_close() -> None:
    """1x2 spans 64x96 px and 2x4 96x160: closer to 2, but thirty times an image of 16x32."""
    policy = dataclasses.replace(HALVES, grids=((1, 2), (2, 4)))
    assert plan(16, 32, policy).grids[0].rows == 1
    assert plan(160, 320, policy).grids[0].rows == 2


def test_an_explicit_list_is_all_there_is() -> None:
    policy = dataclasses.replace(POLICY, grids=((2, 2), (1, 3)))
    assert [(g.rows, g.cols) for g in plan(1, 1, policy).grids] == [(2, 2), (1, 1)]
    assert [(g.rows, g.cols) for g in plan(10, 9000, policy).grids] == [(1, 3), (1, 1)]


def test_a_thumbnail_comes_last_and_only_beside_several_tiles() -> None:
    assert [g.tiles for g in plan(448, 448, POLICY).grids] == [1]
    assert [g.tiles for g in plan(448, 896, POLICY).grids] == [2, 1]
    without = dataclasses.replace(POLICY, thumbnail=False)
    assert [g.tiles for g in plan(448, 896, without).grids] == [2]


def test_grids_carry_overlap_rule_and_border() -> None:
    iss = FlashVLConfig.dynamic_iss_2b().image
    main, thumbnail = plan(500, 1500, iss).grids
    assert main == iss.grid(1, 3)
    assert thumbnail == iss.grid(1, 1)
    assert (main.overlap, main.rule, main.border) == (8, "crop", 4)


def test_tokens_are_counted_over_all_parts() -> None:
    static, iss = FlashVLConfig.static_2b().image, FlashVLConfig.dynamic_iss_2b().image
    dynamic = FlashVLConfig.dynamic_2b().image
    assert plan(3000, 100, static).tokens == 256
    assert plan(100, 100, iss).tokens == 576
    assert plan(100, 200, iss).tokens == 2 * 576 + 576
    assert plan(100, 200, dynamic).tokens == 2 * 256 + 256


def test_a_policy_outside_a_config_says_where_to_get_one() -> None:
    with pytest.raises(ValueError, match=r"take the policy of a FlashVLConfig"):
        plan(10, 10, ImagePolicy())
    with pytest.raises(ImageError, match="0x5 pixels is empty"):
        plan(0, 5, POLICY)


@pytest.mark.parametrize("size", [(64, 120), (90, 300), (300, 64)])
def test_inputs_are_the_resized_image_cut_and_normalised(size: tuple[int, int]) -> None:
    policy = FlashVLConfig.tiny().image
    picture = np.random.default_rng(3).integers(0, 256, (*size, 3), np.uint8)
    [(rows, grid)] = image_to_inputs(torch.from_numpy(picture), policy)
    high, wide = (side * 8 for side in grid.canvas_full)
    canvas = np.asarray(Image.fromarray(picture).resize((wide, high), Image.Resampling.BICUBIC))
    for tile in range(grid.tiles):
        top, left = (8 * at for at in grid.tile_origin(tile))
        cut = torch.from_numpy(canvas[top : top + 64, left : left + 64].copy())
        pixels = cut.float() / 255 * 2 - 1
        expected = pixels.view(8, 8, 8, 8, 3).permute(0, 2, 4, 1, 3).reshape(64, 192)
        torch.testing.assert_close(rows[tile], expected, rtol=0, atol=1e-6)


def test_the_main_part_and_the_thumbnail_show_the_same_image() -> None:
    policy = dataclasses.replace(FlashVLConfig.tiny().image, thumbnail=True)
    image = torch.full((64, 200, 3), 200, dtype=torch.uint8)
    image[:, :100] = 40
    main, thumbnail = image_to_inputs(image, policy, torch.bfloat16)
    assert main[0].dtype == thumbnail[0].dtype == torch.bfloat16
    assert main[0].shape[0] == 2 and thumbnail[0].shape[0] == 1
    dark, light = 40 / 255 * 2 - 1, 200 / 255 * 2 - 1
    for rows, _ in (main, thumbnail):
        assert float(rows[0, 0].float().mean()) == pytest.approx(dark, abs=0.01)
        assert float(rows[-1, 7].float().mean()) == pytest.approx(light, abs=0.01)


def sources(tmp_path: Path, picture: np.ndarray) -> dict[str, object]:
    pillow = Image.fromarray(picture)
    pillow.save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    return {
        "text path": str(tmp_path / "a.png"),
        "path": tmp_path / "a.png",
        "bytes": data,
        "bytearray": bytearray(data),
        "memoryview": memoryview(data),
        "file": io.BytesIO(data),
        "pillow": pillow,
        "opened": Image.open(io.BytesIO(data)),
        "array": picture,
        "read-only array": np.frombuffer(picture.tobytes(), np.uint8).reshape(picture.shape),
        "mirrored twice": picture[::-1, ::-1].copy()[::-1, ::-1],
        "tensor": torch.from_numpy(picture),
        "strided tensor": torch.from_numpy(picture.transpose(2, 0, 1).copy()).permute(1, 2, 0),
    }


def test_every_source_gives_the_same_fresh_tensor(tmp_path: Path) -> None:
    picture = np.random.default_rng(1).integers(0, 256, (5, 9, 3), np.uint8)
    for name, source in sources(tmp_path, picture).items():
        image = load_image(source)
        assert np.array_equal(image.numpy(), picture), name
        assert image.is_contiguous() and image.dtype == torch.uint8, name
        image.zero_()
        assert picture.any(), name


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpeg", "png"])
def test_exif_orientation_is_undone(orientation: int, kind: str) -> None:
    """The picture is stored so that undoing its orientation gives a known one."""
    upright = Image.new("RGB", (48, 32), "white")
    upright.paste("red", (0, 0, 16, 16))
    upright.paste("blue", (32, 16, 48, 32))
    inverse = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(inverse[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    options = {"quality": 95, "subsampling": 0} if kind == "jpeg" else {}
    stored.save(buffer, kind, exif=exif, **options)
    loaded = load_image(buffer.getvalue())
    assert tuple(loaded.shape) == (32, 48, 3)
    difference = np.abs(loaded.numpy().astype(int) - np.asarray(upright).astype(int))
    assert difference.max() <= (0 if kind == "png" else 5)
