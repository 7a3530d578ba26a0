"""Dense targets of tiled pictures: pixel counts by hand, letters where they are printed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image, ImageDraw

from flashvl import FlashVLConfig
from flashvl.train import printed, tiled, tiled_example
from flashvl.train.canvas import COVERAGE
from flashvl.train.glyphs import Glyph, of_text, symbol_of
from flashvl.train.policies import framed_size, grid_for, policies
from flashvl.train.seams import Box
from flashvl.train.tile_targets import HALVES, IGNORE, tile_targets, token_shares
from flashvl_kernels.tiles import TileGrid

POLICIES = {policy.name: policy for policy in policies(FlashVLConfig.tiny())}
PATCH = 8


def some_glyphs(seed: int, size: tuple[int, int], count: int = 9) -> list[Glyph]:
    """Boxes of whole pixels, some of them thin, in texts of three."""
    rng = np.random.default_rng(seed)
    glyphs = []
    for index in range(count):
        high, wide = int(rng.integers(2, 20)), int(rng.integers(1, 14))
        top, left = (int(rng.integers(0, s - e)) for s, e in zip(size, (high, wide), strict=True))
        box = Box(top, left, top + high, left + wide)
        glyphs.append(Glyph(1 + index, index % 7, index // 3, 1 + index % 3, box))
    return glyphs


def by_counting(glyphs: list[Glyph], grid: TileGrid) -> list[np.ndarray]:
    """Glyph, symbol, order and colour of each half patch, a pixel at a time; the picture is as
    large as the grid's tiles span."""
    out = np.zeros((4, grid.tiles, grid.tile_len, HALVES), np.int64)
    for tile in range(grid.tiles):
        top, left = (PATCH * side for side in grid.tile_origin(tile))

        def inside(box: Box, y0: float, y1: float, x0: float, x1: float) -> bool:
            y, x = (box.top + box.bottom) / 2, (box.left + box.right) / 2
            return y0 <= y < y1 and x0 <= x < x1

        for patch in range(grid.tile_len):
            for half in range(HALVES):
                y0 = top + patch // grid.tile * PATCH
                x0 = left + patch % grid.tile * PATCH + half * PATCH // HALVES
                best, owner = 0.0, -1
                for index, glyph in enumerate(glyphs):
                    box = glyph.box
                    pixels = sum(
                        box.top <= y < box.bottom and box.left <= x < box.right
                        for y in range(y0, y0 + PATCH)
                        for x in range(x0, x0 + PATCH // HALVES)
                    )
                    score = pixels / (PATCH * PATCH // HALVES)
                    if inside(box, y0, y0 + PATCH, x0, x0 + PATCH // HALVES):
                        score += 2
                    if score > best:
                        best, owner = score, index
                if best < COVERAGE:
                    continue
                mine = glyphs[owner]
                earlier = [g for g in glyphs if g.group == mine.group and g.order < mine.order]
                side = PATCH * grid.tile
                known = all(inside(g.box, top, top + side, left, left + side) for g in earlier)
                order = mine.order if known else IGNORE
                out[:, tile, patch, half] = owner + 1, mine.symbol, order, mine.colour
    return list(out)


@pytest.mark.parametrize(
    "grid",
    (
        TileGrid(1, 1, 8), TileGrid(2, 2, 8), TileGrid(2, 2, 8, 2, "linear"),
        TileGrid(1, 2, 8, 1, "mean"), TileGrid(3, 3, 8, 4), TileGrid(3, 3, 8, 1, "crop", 3),
    ),
)  # fmt: skip
def test_every_half_patch_is_what_counting_pixels_gives(grid: TileGrid) -> None:
    size = tuple(PATCH * side for side in grid.canvas_full)
    for seed in range(3):
        glyphs = some_glyphs(seed, size)
        found = tile_targets(glyphs, size, grid)
        wanted = by_counting(glyphs, grid)
        for name, expected in zip(("glyph", "symbol", "order", "colour"), wanted, strict=True):
            assert np.array_equal(getattr(found, name), expected), (seed, name)
        assert (found.glyph > 0).any()
        larger = [g._replace(box=Box(*(2.5 * side for side in g.box))) for g in glyphs]
        scaled = tile_targets(larger, tuple(5 * side // 2 for side in size), grid)
        assert np.array_equal(scaled.glyph, found.glyph)


def test_an_order_is_unknown_where_the_tile_misses_the_start() -> None:
    grid = TileGrid(1, 2, 8)
    boxes = [Box(20, left, 32, left + 10) for left in (44, 54, 66, 76)]
    found = tile_targets(of_text("Zek4", boxes), (64, 128), grid)
    left, right = ({*found.order[tile].flatten().tolist()} for tile in (0, 1))
    assert left == {0, 1, 2} and right == {0, IGNORE}
    assert {*found.symbol[1].flatten().tolist()} == {0, symbol_of("k"), symbol_of("4")}


def test_a_picture_without_glyphs_is_all_background() -> None:
    found = tile_targets([], (128, 128), TileGrid(2, 2, 8))
    assert found.symbol.shape == (4, 64, HALVES) and not found.symbol.any()


@pytest.mark.parametrize("name", POLICIES)
def test_token_shares_are_those_of_the_patches_in_a_token(name: str) -> None:
    """By hand from the tiles' maps: owner and origin of each patch, then adaptive bins."""
    policy = POLICIES[name]
    size = (128, 128)
    grid = grid_for(policy, size)
    glyphs = some_glyphs(5, framed_size(policy, size))
    shown = tile_targets(glyphs, framed_size(policy, size), grid).glyph
    found = token_shares(shown, len(glyphs), policy.image, grid)
    assert found.shape == (len(glyphs), policy.image.tokens(grid))
    if policy.image.stitch:
        height, width = grid.canvas
        owner = grid.owner()
        cells = np.zeros((1, height, width, HALVES), np.int64)
        for y in range(height):
            for x in range(width):
                tile = int(owner[y, x])
                top, left = grid.tile_origin(tile)
                local = (y + grid.border - top) * grid.tile + x + grid.border - left
                cells[0, y, x] = shown[tile, local]
    else:
        cells = shown.reshape(grid.tiles, grid.tile, grid.tile, HALVES)
    token = 0
    rows, cols = (math.ceil(side / 2) for side in cells.shape[1:3])
    for unit in cells:
        for row in range(rows):
            for col in range(cols):
                down, across = (
                    slice(i * side // n, -(-(i + 1) * side // n))
                    for i, n, side in zip((row, col), (rows, cols), unit.shape[:2], strict=True)
                )
                here = unit[down, across]
                wanted = [(here == index + 1).mean() for index in range(len(glyphs))]
                np.testing.assert_allclose(found[:, token], wanted, rtol=1e-6)
                token += 1
    assert token == found.shape[1]


@pytest.mark.parametrize("turn", (0.0, 4.0, -12.0))
def test_the_box_of_a_letter_is_where_its_ink_is(turn: float) -> None:
    """The ink that a letter adds to the text before it, turned with the whole."""
    text = "Tojlw.83"
    for name in printed.FONTS:
        mask, boxes = printed.ink_and_boxes(text, name, 16, turn)
        face = printed.font(name, 16)
        left, top, right, bottom = (round(side) for side in face.getbbox(text))
        layers = []
        for count in range(len(text) + 1):
            layer = Image.new("L", (right - left + 8, bottom - top + 8))
            pen = ImageDraw.Draw(layer)
            pen.text((4 - left, 4 - top), text[:count], fill=255, font=face)
            if turn:
                layer = layer.rotate(turn, Image.Resampling.BICUBIC, expand=True)
            layers.append(np.asarray(layer, float) / 255)
        seen = layers[-1] > 0.1
        first = np.flatnonzero(seen.any(1))[0], np.flatnonzero(seen.any(0))[0]
        for index, box in enumerate(boxes):
            added = layers[index + 1] - layers[index] > 0.3
            rows, cols = (np.flatnonzero(added.any(axis)) for axis in (1, 0))
            seen_box = Box(
                rows[0] - first[0], cols[0] - first[1],
                rows[-1] + 1 - first[0], cols[-1] + 1 - first[1],
            )  # fmt: skip
            where = name, text[index], box, seen_box
            # Half a pixel of rounding and one of antialiasing.
            for low, high in ((0, 2), (1, 3)):
                middles = [(one[low] + one[high]) / 2 for one in (box, seen_box)]
                assert abs(middles[0] - middles[1]) <= 1.6, where
                assert seen_box[low] >= box[low] - 1.5, where
                assert seen_box[high] <= box[high] + 1.5, where
        assert mask.shape[1] >= boxes[-1].right - 2.6


def test_printed_pictures_show_their_text_in_order() -> None:
    """Read back from the dense targets of one tile that holds all of the picture."""
    for index in range(6):
        made = tiled.example(4, index, tiled_example.BIG, "word")
        whole = tile_targets(made.glyphs, made.size, TileGrid(1, 1, 32))  # halves of 2 px
        read = {}
        for order, symbol in zip(whole.order.flatten(), whole.symbol.flatten(), strict=True):
            read[int(order)] = int(symbol)
        answer = made.turn[1]
        assert [read[n] for n in range(1, 1 + len(answer))] == [symbol_of(c) for c in answer]
