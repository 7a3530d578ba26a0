"""Images as they come: odd modes give the right pixels, broken ones a clear ImageError."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from flashvl.image import ImageError, load_image

RED, WHITE = (255, 0, 0), (255, 255, 255)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(height: int = 40, width: int = 60) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def huge_png(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims width x height pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(b"\0" * 100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "PPM", "WEBP", "TGA"])
def test_a_truncated_file_is_an_error_or_its_whole_image(kind: str) -> None:
    data = encoded(noise(), kind)
    whole = load_image(data)
    for cut in {1, 2, 7, 20, len(data) // 3, len(data) // 2, len(data) - 30}:
        try:
            image = load_image(data[:cut])
        except ImageError as error:
            assert f"bytes ({cut})" in str(error)
        else:  # what follows the pixels, such as TGA's footer, may be missing
            assert cut > len(data) // 2 and torch.equal(image, whole)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "PPM", "WEBP"])
def test_a_file_cut_in_half_is_an_error(kind: str, tmp_path: Path) -> None:
    data = encoded(noise(), kind)
    path = tmp_path / f"half.{kind.lower()}"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(
        ImageError, match=rf"half\.{kind.lower()}: is (damaged or cut short|not an)"
    ):
        load_image(path)


def test_flipped_bits_never_escape_as_another_error() -> None:
    random = np.random.default_rng(5)
    for kind in ("PNG", "JPEG", "GIF", "TIFF", "WEBP"):
        good = np.frombuffer(encoded(noise(), kind), np.uint8)
        for _ in range(60):
            bad = good.copy()
            at = random.integers(0, min(len(bad), 400), 3)
            bad[at] ^= random.integers(1, 256, 3, np.uint8)
            try:
                image = load_image(bad.tobytes())
            except ImageError:
                continue
            assert image.dtype == torch.uint8 and image.shape[2] == 3


def test_zero_bytes_and_text_are_named(tmp_path: Path) -> None:
    for name, content, match in (
        ("empty.png", b"", "is empty"),
        ("text.jpg", b"this is no image, whatever its name says", "is not an image"),
        ("page.html", b"<!DOCTYPE html><html></html>", "is not an image"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ImageError, match=f"{name}.*{match}"):
            load_image(tmp_path / name)
    with pytest.raises(ImageError, match=r"bytes \(0\): is empty"):
        load_image(b"")


def test_paths_that_are_no_files_are_named(tmp_path: Path) -> None:
    for source, match in (
        (tmp_path / "no.png", "no such file"),
        (tmp_path, "is a folder"),
        ("https://example.org/a.png", "download it"),
        ("a\0b.png", "cannot be opened"),
        ("", "is a folder|no such file"),
    ):
        with pytest.raises(ImageError, match=match):
            load_image(source)


def test_things_that_are_no_images_are_named() -> None:
    for source, match in (
        (None, "cannot use NoneType"),
        (3, "cannot use int"),
        ({"image": 1}, "cannot use dict"),
        (io.StringIO("text"), "open it with mode 'rb'"),
    ):
        with pytest.raises(ImageError, match=match):
            load_image(source)


@pytest.mark.parametrize(("width", "height"), [(30_000, 30_000), (2**31 - 1, 2**31 - 1)])
def test_a_huge_claim_is_refused_before_decoding(width: int, height: int) -> None:
    with pytest.raises(ImageError, match="claims"):
        load_image(huge_png(width, height))


def test_the_limit_is_the_callers_and_warns_nobody() -> None:
    """10,000 x 9,500 is over Pillow's warning and under our limit: it fails as cut short only."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageError, match="cut short"):
            load_image(huge_png(10_000, 9_500))
    with pytest.raises(ImageError, match=r"claims 60x40 = 2,400 pixels.*limit of 2,399"):
        load_image(encoded(noise(), "PNG"), max_pixels=2399)
    assert tuple(load_image(encoded(noise(), "PNG"), max_pixels=2400).shape) == (40, 60, 3)
    with pytest.raises(ImageError, match="limit of 10"):
        load_image(noise(), max_pixels=10)


def test_pillows_global_switches_stay_as_they_were() -> None:
    before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
    for data in (encoded(noise(), "PNG"), huge_png(30_000, 30_000), b"x"):
        try:
            load_image(data)
        except ImageError:
            continue
    assert before == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)


def test_postscript_is_not_opened_at_all() -> None:
    """Pillow would hand it to Ghostscript, another program."""
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    with pytest.raises(ImageError, match="not an image in a known format"):
        load_image(eps)


@pytest.mark.parametrize("shape", [(1, 10_000), (10_000, 1), (1, 1)])
def test_a_line_of_pixels_is_an_image(shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (*shape, 3), np.uint8)
    assert np.array_equal(load_image(encoded(Image.fromarray(pixels), "PNG")).numpy(), pixels)


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "green", "blue")]
    for kind in ("GIF", "PNG", "WEBP", "TIFF"):
        options = {"lossless": True} if kind == "WEBP" else {}
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        with Image.open(io.BytesIO(data)) as check:
            assert check.n_frames == 3
        image = load_image(data)
        assert (image.view(-1, 3) == torch.tensor(RED, dtype=torch.uint8)).all(), kind


def test_cmyk_becomes_rgb() -> None:
    for kind in ("JPEG", "TIFF"):
        data = encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), kind)
        assert np.abs(load_image(data).numpy().astype(int) - RED).max() <= 3, kind


def test_sixteen_bits_are_scaled_and_not_clipped() -> None:
    values = np.array([[0, 257 * 40, 257 * 40 + 128, 257 * 40 + 129, 65535]], np.uint16)
    grey = np.array([[0, 40, 40, 41, 255]], np.uint8)
    expected = np.repeat(grey[:, :, None], 3, 2)
    image = Image.fromarray(values)
    assert image.mode == "I;16"
    big_endian = Image.frombytes("I;16B", (5, 1), values.astype(">u2").tobytes())
    sources = {
        "png": encoded(image, "PNG"),
        "tiff": encoded(image, "TIFF"),
        "pillow": image,
        "big endian": big_endian,
        "mode I": Image.fromarray(values.astype(np.int32)),
        "array": values,
        "tensor": torch.from_numpy(values),
    }
    for name, source in sources.items():
        assert np.array_equal(load_image(source).numpy(), expected), name


def test_sixteen_bit_images_are_turned_upright_too() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    values = np.array([[0, 65535]], np.uint16)
    image = load_image(encoded(Image.fromarray(values), "PNG", exif=exif))
    assert image[:, :, 0].tolist() == [[0], [255]]


def test_32_bit_and_float_pixels_say_what_to_do() -> None:
    for source in (
        Image.fromarray(np.array([[0, 70_000]], np.int32)),
        Image.fromarray(np.array([[-1, 5]], np.int32)),
        Image.fromarray(np.zeros((2, 2), np.float32)),
        np.zeros((2, 2, 3), np.float32),
        np.zeros((2, 2, 3), np.float64),
        torch.zeros(2, 2, 3),
    ):
        with pytest.raises(ImageError, match=r"scale them to 0\.\.255 and convert to"):
            load_image(source)
    for other in (np.zeros((2, 2), np.int64), np.zeros((2, 2), complex), np.array(["a"])):
        with pytest.raises(ImageError, match="needs uint8, uint16 or bool"):
            load_image(other)


def test_one_bit_is_black_and_white() -> None:
    bits = np.array([[True, False, True]])
    expected = [[255, 0, 255]]
    for source in (Image.fromarray(bits), encoded(Image.fromarray(bits), "PNG"), bits):
        assert load_image(source)[:, :, 0].tolist() == expected


@pytest.mark.parametrize("alpha", [0, 1, 64, 128, 254, 255])
def test_transparency_lies_on_white(alpha: int) -> None:
    blend = np.rint((np.array(RED) * alpha + 255.0 * (255 - alpha)) / 255)
    grey = np.rint((100 * alpha + 255.0 * (255 - alpha)) / 255)
    rgba = Image.new("RGBA", (3, 2), (*RED, alpha))
    la = Image.new("LA", (3, 2), (100, alpha))
    for source in (rgba, encoded(rgba, "PNG"), np.asarray(rgba), torch.tensor(np.asarray(rgba))):
        assert np.abs(load_image(source).numpy() - blend).max() <= 1
    for source in (la, encoded(la, "PNG"), np.asarray(la)):
        assert np.abs(load_image(source).numpy() - grey).max() <= 1


def test_premultiplied_alpha_is_undone_first() -> None:
    rgba = Image.new("RGBA", (2, 2), (255, 0, 0, 128))
    expected = load_image(rgba).numpy().astype(int)
    assert np.abs(load_image(rgba.convert("RGBa")).numpy() - expected).max() <= 2


def test_palettes_with_and_without_transparency() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([*RED, 0, 0, 255])
    palette.putdata([0, 1])
    assert load_image(encoded(palette, "PNG")).tolist() == [[[*RED], [0, 0, 255]]]
    for kind, transparent in (("PNG", 1), ("GIF", 1), ("PNG", bytes([255, 0]))):
        data = encoded(palette, kind, transparency=transparent)
        assert load_image(data).tolist() == [[[*RED], [*WHITE]]], (kind, transparent)


def test_a_transparent_colour_of_an_rgb_file_is_white() -> None:
    image = Image.new("RGB", (2, 1), RED)
    image.putpixel((1, 0), (1, 2, 3))
    data = encoded(image, "PNG", transparency=(1, 2, 3))
    assert load_image(data).tolist() == [[[*RED], [*WHITE]]]


@pytest.mark.parametrize("mode", ["L", "YCbCr", "HSV", "RGBX"])
def test_other_modes_convert(mode: str) -> None:
    image = Image.new("RGB", (4, 4), (90, 90, 90)).convert(mode)
    assert np.abs(load_image(image).numpy().astype(int) - 90).max() <= 2


def test_arrays_of_other_shapes_are_named() -> None:
    for shape, match in (
        ((3, 20, 30), r"permute\(1, 2, 0\)"),
        ((20,), r"needs \[height, width\]"),
        ((1, 20, 30, 3), r"needs \[height, width\]"),
        ((0, 5, 3), "not empty"),
        ((5, 5, 7), r"needs \[height, width\]"),
    ):
        for source in (np.zeros(shape, np.uint8), torch.zeros(shape, dtype=torch.uint8)):
            with pytest.raises(ImageError, match=match):
                load_image(source)
    grey = np.full((2, 3), 7, np.uint8)
    assert load_image(grey).tolist() == load_image(grey[:, :, None]).tolist() == [[[7] * 3] * 3] * 2


def test_unreadable_exif_leaves_the_image_as_it_is() -> None:
    data = encoded(noise(), "JPEG", exif=b"Exif\0\0MM\0\x2a\xff\xff\xff\xff garbage")
    assert tuple(load_image(data).shape) == (40, 60, 3)


def test_an_image_closed_too_early_is_an_error(tmp_path: Path) -> None:
    noise().save(tmp_path / "a.png")
    image = Image.open(tmp_path / "a.png")
    image.close()
    with pytest.raises(ImageError, match=r"RGB image \(60, 40\): is damaged"):
        load_image(image)
