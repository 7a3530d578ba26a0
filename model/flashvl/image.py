"""From whatever a user calls an image to the rows a vision encoder eats.

`load_image` turns a path, bytes, a file, a Pillow image, an array or a tensor into uint8 [H, W, 3];
`plan` chooses the tiles; `image_to_inputs` cuts them with the `image_to_patches` op. Decoding is
Pillow's, limited to formats that are read in-process (no EPS, which starts Ghostscript) and to a
pixel count that is checked in the header, before any memory is taken. Colour profiles are ignored,
as other VLM loaders do.

The grid choice is InternVL's (arXiv 2312.14238 and its published code): closest aspect ratio; among
equally close grids the larger one only if the image has more than half of its pixels. What tiles
that overlap span is less wide than their number says: there the aspect ratio is that of the span.
"""

from __future__ import annotations

import io
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import torch
from PIL import Image
from torch import Tensor

from flashvl.config import ImagePolicy
from flashvl_kernels import TileGrid, image_to_patches

MAX_PIXELS = 100_000_000
FORMATS = (
    "PNG",
    "JPEG",
    "WEBP",
    "GIF",
    "BMP",
    "DIB",
    "TIFF",
    "PPM",
    "AVIF",
    "JPEG2000",
    "TGA",
    "ICO",
    "MPO",
)
EXIF_ORIENTATION = 0x0112


class ImageError(ValueError):
    """An image that cannot be used; the text names the source and what to do."""


def load_image(source: Any, max_pixels: int = MAX_PIXELS) -> Tensor:
    """`source` as a fresh contiguous uint8 tensor [H, W, 3], upright, on white where it is
    transparent.

    source: path, bytes, binary file, Pillow image, array (uint8, uint16 or bool; [H, W] or [H, W,
    1..4]) or uint8 tensor of the same shapes. 16-bit values are scaled to 8 bits, animations give
    their first frame. Images of more than `max_pixels` are refused before they are decoded.
    ImageError says what is wrong.
    """
    if isinstance(source, Tensor):
        return _from_array(source, f"tensor {list(source.shape)}")
    if isinstance(source, Image.Image):
        return _from_pillow(source, f"{source.mode} image {source.size}", max_pixels)
    if hasattr(source, "__array_interface__"):
        return _from_numpy(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _from_file(io.BytesIO(bytes(source)), f"bytes ({len(source)})", max_pixels)
    if isinstance(source, (str, os.PathLike)):
        return _from_path(source, max_pixels)
    if callable(getattr(source, "read", None)):
        name = f"file {getattr(source, 'name', type(source).__name__)}"
        data = source.read()
        if not isinstance(data, bytes):
            raise ImageError(f"{name}: is open as text; open it with mode 'rb'")
        return _from_file(io.BytesIO(data), name, max_pixels)
    raise ImageError(
        f"image: cannot use {type(source).__name__}; needs a path, bytes, a binary file, a Pillow "
        "image, a uint8 array or a uint8 tensor"
    )


@dataclass(frozen=True)
class ImagePlan:
    """How one image is cut: the main grid, then the thumbnail's if there is one."""

    grids: tuple[TileGrid, ...]
    tokens: int
    """Decoder tokens of all parts together."""


def plan(height: int, width: int, policy: ImagePolicy) -> ImagePlan:
    """The grids for an image of height x width pixels.

    Candidates are `policy.grids`, or every rows x cols of min_tiles to max_tiles. The one that
    spans an aspect ratio closest to width/height wins: cols/rows where tiles don't overlap. Of
    equally close ones (1x1, 2x2, ...) the largest whose canvas has less than twice the image's
    pixels wins, so that a small image is not blown up; if none, the smallest.
    """
    if height < 1 or width < 1:
        raise ImageError(f"image of {height}x{width} pixels is empty; needs at least 1x1")
    if not policy.tile or not policy.patch:
        raise ValueError(
            f"policy: tile is {policy.tile} and patch {policy.patch}; take the policy of a "
            "FlashVLConfig (config.image), which fills them in"
        )
    rows, cols = _closest_grid(height, width, policy)
    grids = [policy.grid(rows, cols)]
    if policy.thumbnail and rows * cols > 1:
        grids.append(policy.grid(1, 1))
    return ImagePlan(tuple(grids), sum(policy.tokens(grid) for grid in grids))


def image_to_inputs(
    image: Tensor, policy: ImagePolicy, dtype: torch.dtype = torch.float32
) -> list[tuple[Tensor, TileGrid]]:
    """The encoder's input for each part of the plan: (patch rows [tiles, tile^2, 3 patch^2], its
    grid)."""
    parts = plan(image.shape[0], image.shape[1], policy).grids
    return [
        (image_to_patches(image, grid, policy.mean, policy.std, policy.patch, dtype), grid)
        for grid in parts
    ]


def _closest_grid(height: int, width: int, policy: ImagePolicy) -> tuple[int, int]:
    candidates = policy.grids or [
        (rows, cols)
        for rows in range(1, policy.max_tiles + 1)
        for cols in range(1, policy.max_tiles // rows + 1)
        if rows * cols >= policy.min_tiles
    ]
    aspect = Fraction(width, height)
    best, best_distance = (1, 1), None
    for rows, cols in sorted(candidates, key=lambda grid: (grid[0] * grid[1], grid[0])):
        distance = abs(aspect - _aspect(rows, cols, policy))
        canvas_rows, canvas_cols = policy.grid(rows, cols).canvas_full
        detailed = 2 * height * width > canvas_rows * canvas_cols * policy.patch**2
        if (
            best_distance is None
            or distance < best_distance
            or (distance == best_distance and detailed)
        ):
            best, best_distance = (rows, cols), distance
    return best


def _aspect(rows: int, cols: int, policy: ImagePolicy) -> Fraction:
    """Width by height of what a grid spans, its border left out. Grids of one shape (1x2, 2x4)
    count as equal, though with an overlap the larger spans a little more: it would win for that."""
    common = math.gcd(rows, cols)
    height, width = policy.grid(rows // common, cols // common).canvas
    return Fraction(width, height)


def _from_path(source: str | os.PathLike[str], max_pixels: int) -> Tensor:
    path = os.fspath(source)
    name = f"image {path}"
    if isinstance(path, str) and path.split("://")[0] in ("http", "https", "ftp", "data", "s3"):
        raise ImageError(
            f"{name}: is an address, not a file; download it and pass the file or its bytes"
        )
    try:
        with Path(path).open("rb") as file:
            return _from_file(file, name, max_pixels)
    except FileNotFoundError as error:
        raise ImageError(f"{name}: no such file; check the path") from error
    except IsADirectoryError as error:
        raise ImageError(f"{name}: is a folder; pass one image file") from error
    except (OSError, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{name}: cannot be opened ({error})") from error


def _from_file(file: BinaryIO, name: str, max_pixels: int) -> Tensor:
    if not file.read(1):
        raise ImageError(f"{name}: is empty (0 bytes); the copy or download failed, fetch it again")
    file.seek(0)
    with _decoding(name):
        Image.init()
        known = [kind for kind in FORMATS if kind in Image.OPEN]
        image = Image.open(file, formats=known)
    with image:
        return _from_pillow(image, name, max_pixels)


@contextmanager
def _decoding(name: str) -> Iterator[None]:
    """Turns the many things Pillow raises into one ImageError, and drops its warnings.

    Of its decompression-bomb checks, ours (`max_pixels`) takes the place of the warning; the error,
    at 179 million pixels, stays.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"{name}: claims too many pixels ({error}); scale it down first"
        ) from error
    except Image.UnidentifiedImageError as error:
        known = ", ".join(FORMATS)
        raise ImageError(
            f"{name}: is not an image in a known format; needs one of {known}"
        ) from error
    except (
        Exception
    ) as error:  # decoders raise OSError, SyntaxError, struct.error, EOFError, ValueError
        raise ImageError(
            f"{name}: is damaged or cut short ({error}); fetch it again or save it anew"
        ) from error


def _from_pillow(image: Image.Image, name: str, max_pixels: int) -> Tensor:
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError(f"{name}: has {width}x{height} pixels; needs at least 1x1")
    if width * height > max_pixels:
        raise ImageError(
            f"{name}: claims {width}x{height} = {width * height:,} pixels, more than the limit of "
            f"{max_pixels:,}; scale it down, or raise max_pixels if you trust it"
        )
    if image.mode == "F":
        raise ImageError(
            f"{name}: has float pixels of unknown range; scale them to 0..255 and convert to mode L"
        )
    with _decoding(name):
        image.load()
        rgb = _sixteen_bit(image, name) if image.mode.startswith("I") else _to_rgb(image)
    return _upright(rgb, _orientation(image)).contiguous()


def _orientation(image: Image.Image) -> object:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return image.getexif().get(EXIF_ORIENTATION, 1)
    except Exception:  # an unreadable EXIF block says nothing about which way is up
        return 1


def _to_rgb(image: Image.Image) -> Tensor:
    if image.mode in ("La", "RGBa"):  # premultiplied alpha, which only converts to its plain twin
        image = image.convert(image.mode.upper())
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    image = image.convert("RGB")
    width, height = image.size
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(height, width, 3)


def _sixteen_bit(image: Image.Image, name: str) -> Tensor:
    width, height = image.size
    grey = torch.frombuffer(bytearray(image.convert("I").tobytes()), dtype=torch.int32)
    low, high = int(grey.min()), int(grey.max())
    if low < 0 or high > 65535:
        raise ImageError(
            f"{name}: has 32-bit pixels from {low} to {high}; "
            "scale them to 0..255 and convert to mode L"
        )
    return _eight_bit(grey).view(height, width, 1).repeat(1, 1, 3)


def _eight_bit(values: Tensor) -> Tensor:
    """0..65535 to 0..255, rounded: 65535 = 255 * 257."""
    return ((values.to(torch.int32) + 128) // 257).to(torch.uint8)


def _upright(image: Tensor, orientation: object) -> Tensor:
    """Undoes EXIF orientation 2..8 of an image [H, W, 3]; 1 and unknown values leave it."""
    if orientation in (5, 6, 7, 8):
        image = image.transpose(0, 1)
    flips = {2: (1,), 3: (0, 1), 4: (0,), 6: (1,), 7: (0, 1), 8: (0,)}
    axes = flips.get(orientation) if isinstance(orientation, int) else None
    return image.flip(axes) if axes else image


def _from_numpy(source: Any) -> Tensor:
    name = f"array {list(source.shape)} of {source.dtype}"
    if source.dtype.kind not in "bu":
        raise ImageError(f"{name}: {_wrong_dtype(source.dtype.kind == 'f')}")
    try:
        return _from_array(
            torch.from_numpy(source.copy()), name
        )  # copy: read-only or negative strides
    except TypeError as error:  # uint64, or a foreign byte order
        raise ImageError(f"{name}: {_wrong_dtype(False)}") from error


def _from_array(array: Tensor, name: str) -> Tensor:
    if array.dtype == torch.uint16:
        array = _eight_bit(array)
    elif array.dtype == torch.bool:
        array = array.to(torch.uint8) * 255
    elif array.dtype != torch.uint8:
        raise ImageError(f"{name}: {_wrong_dtype(array.is_floating_point())}")
    if array.dim() == 2:
        array = array[:, :, None]
    if array.dim() != 3 or array.shape[2] not in (1, 2, 3, 4) or not array.numel():
        hint = "; use permute(1, 2, 0)" if array.dim() == 3 and array.shape[0] in (1, 3, 4) else ""
        raise ImageError(
            f"{name}: needs [height, width] or [height, width, 1 to 4], not empty{hint}"
        )
    array = array.detach().to("cpu", copy=True)
    channels = array.shape[2]
    if channels in (2, 4):
        array = _on_white(array[:, :, :-1], array[:, :, -1:])
    return (array if array.shape[2] == 3 else array.repeat(1, 1, 3)).contiguous()


def _on_white(colour: Tensor, alpha: Tensor) -> Tensor:
    opacity = alpha.to(torch.int32)
    blend = colour.to(torch.int32) * opacity + 255 * (255 - opacity)
    return ((blend + 127) // 255).to(torch.uint8)


def _wrong_dtype(is_float: bool) -> str:
    if is_float:
        return "has float pixels of unknown range; scale them to 0..255 and convert to uint8"
    return "needs uint8, uint16 or bool pixels; convert them to uint8"
