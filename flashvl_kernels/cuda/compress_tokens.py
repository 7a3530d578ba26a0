"""Launch plan of compress_tokens (csrc/cuda/compress_tokens.cuh): a block an output token."""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flashvl_kernels.compression import Compression
from flashvl_kernels.cuda import canvas as canvases
from flashvl_kernels.cuda.canvas import TokenCanvas
from flashvl_kernels.cuda.device import Device
from flashvl_kernels.cuda.launch import (
    TYPES,
    WARP,
    Instance,
    Launch,
    Prepared,
    address,
    ceil_div,
    vector_width,
)
from flashvl_kernels.tiles import TileGrid

THREADS = 384
"""At most: kCompressThreads."""
HELD = {False: 3, True: 1}
"""Vectors a thread holds at most, moved or pooled: kCompressHeld."""
BLOCKS_FOR_LONG = 4
"""Blocks of each multiprocessor, from which on the number under way counts."""
GRID_LIMIT = 2**31 - 1
POOLINGS = ("none", "average", "adaptive", "bilinear")
IN_ORDER, INTERLEAVED, SCATTERED = range(3)
"""How a row is written: kInOrder and so on."""


@dataclass(frozen=True)
class CompressPlan:
    """vector: elements an access. held: whether a row stays in registers."""

    vector: int
    held: bool
    grid: int
    threads: int


def plan(rows: int, columns: int, vector: int, pooled: bool, device: Device) -> CompressPlan:
    """The launch for `rows` rows of `columns` elements.

    Two vectors a thread; three where that leaves none idle and the device is full for long: more
    blocks are under way then, and on an H100 64 MiB took 94 µs instead of 128. Few rows are over
    sooner with more threads each (9.6 against 11.8 µs). One where a thread adds up several tokens
    for it. Single elements are never held: such rows are rare, and short or slow anyway.
    """
    vectors = ceil_div(columns, vector)
    each = 1 if pooled else 2
    most = WARP * HELD[pooled]
    if vectors > THREADS * each or (
        vectors % most == 0 and rows >= BLOCKS_FOR_LONG * device.multiprocessors
    ):
        each = HELD[pooled]
    threads = min(ceil_div(ceil_div(vectors, each), WARP) * WARP, THREADS)
    held = vector > 1 and vectors <= threads * HELD[pooled]
    return CompressPlan(vector, held, rows, threads)


class CompressTokensArgs(ctypes.Structure):
    """CompressTokensArgs<T> of csrc/cuda/compress_taps.cuh."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "weight", "bias", "y")),
        ("canvas", TokenCanvas),
        *((name, ctypes.c_int64) for name in ("columns", "rows_a_token")),
        *(
            (name, ctypes.c_int)
            for name in (
                "channels", "factor", "out_rows", "out_cols", "transpose",
                "pooling", "order",
            )
        ),
        ("eps", ctypes.c_float),
    )  # fmt: skip


def _instance(dtype: torch.dtype, vector: int, held: bool, pooled: bool) -> Instance:
    name = TYPES[dtype]
    kernel = "compress_tokens_kernel" if held else "compress_tokens_long_kernel"
    pool = "true" if pooled else "false"
    return Instance(f"{kernel}<{name}, {vector}, {pool}>", f"CompressTokensArgs<{name}>")


def instances() -> list[Instance]:
    """The kernels to build."""
    found = []
    for dtype in TYPES:
        width = 16 // dtype.itemsize
        for pooled in (False, True):
            found += [_instance(dtype, width, held, pooled) for held in (True, False)]
            found += [_instance(dtype, 1, False, pooled)]
    return found


def why_not(
    x: Tensor, norm_weight: Tensor | None, norm_bias: Tensor | None, norm_eps: float, *fields: Any
) -> str | None:
    """Places inside an output are 32 bits, and each output is a block."""
    how, (images, height, width) = Compression.from_flat(fields[:8]), _size(x, fields)
    channels = how.channels(x.shape[2])
    if channels >= 2**31:
        return f"{channels} channels an output; the CUDA kernel takes fewer than 2^31"
    rows = images * how.tokens(height, width) * (how.factor**2 if how.norm_first else 1)
    if rows > GRID_LIMIT or images * height * width > GRID_LIMIT:
        return f"{max(rows, images * height * width)} tokens; the CUDA kernel takes up to 2^31 - 1"
    return None


def _size(x: Tensor, fields: tuple[Any, ...]) -> tuple[int, int, int]:
    """Images, and height and width of their tokens, from the schema arguments after the norm's."""
    height, width, rows = fields[8:11]
    if rows != 0:
        grid = TileGrid.from_flat(fields[10:])
        return x.shape[0] // grid.tiles, *grid.canvas
    if height == -1:
        height = width = math.isqrt(x.shape[1])
    return x.shape[0], height, width


@dataclass(frozen=True)
class _Source:
    """Tokens to compress: x, where they lie in it, and height and width of their grid."""

    x: Tensor
    canvas: TokenCanvas
    images: int
    height: int
    width: int


def _source(x: Tensor, fields: tuple[Any, ...]) -> _Source:
    """From the schema arguments: `fields` are those after the norm's."""
    if x.shape[2] > 1 and x.stride(2) != 1:
        x = x.contiguous()
    images, height, width = _size(x, fields)
    if fields[10] != 0:
        canvas = canvases.of_tiles(TileGrid.from_flat(fields[10:]), *x.stride()[:2])
    else:
        canvas = canvases.of_images(height, width, *x.stride()[:2])
    return _Source(x, canvas, images, height, width)


def _launch(
    source: _Source,
    how: Compression,
    norm: tuple[Tensor | None, Tensor | None, float],
    y: Tensor,
    norm_first: bool,
    device: Device,
) -> Launch:
    """norm_first: the norm is over the tokens of x, before they are moved."""
    weight, bias, eps = norm
    x, channels = source.x, source.x.shape[2]
    shuffled = how.kind in ("shuffle", "none")
    factor = 1 if how.kind == "none" else how.factor
    parts = factor * factor if how.kind == "shuffle" else 1
    rows_a_token = parts if norm_first else 1
    out_rows, out_cols = how.grid(source.height, source.width)
    canvas = source.canvas
    addresses = tuple(t.data_ptr() for t in (x, weight, bias, y) if t is not None)
    sizes = (channels, canvas.tile_stride, canvas.token_stride)
    vector = vector_width(x.element_size(), sizes, addresses)
    columns = channels * parts // rows_a_token
    rows = source.images * out_rows * out_cols * rows_a_token
    chosen = plan(rows, columns, vector, not shuffled, device)
    order = IN_ORDER
    if parts > 1 and how.order == "channel_row_col":
        fits = parts == 4 and rows_a_token == 1 and chosen.held
        order = INTERLEAVED if fits else SCATTERED
    arguments = CompressTokensArgs(
        address(x), address(weight), address(bias), address(y), canvas,
        columns, rows_a_token,
        channels, factor, out_rows, out_cols, how.transpose,
        0 if shuffled else POOLINGS.index(how.kind), order, eps,
    )  # fmt: skip
    kernel = _instance(x.dtype, vector, chosen.held, not shuffled)
    return Launch(kernel, (chosen.grid, 1, 1), (chosen.threads, 1, 1), arguments)


def prepare(flat: tuple[Any, ...], device: Device) -> Prepared:
    """A call on schema arguments."""
    x, norm_weight, norm_bias, eps, *rest = flat
    fields = tuple(rest)
    how, source = Compression.from_flat(fields[:8]), _source(x, fields)
    images, height, width = source.images, source.height, source.width
    y = x.new_empty(images, how.tokens(height, width), how.channels(x.shape[2]))
    if y.numel() == 0:
        return Prepared((y,), (), {}, frozenset())
    tensors = {"x": source.x, "y": y}
    if norm_weight is not None:
        tensors["weight"] = norm_weight.contiguous()
    if norm_bias is not None:
        tensors["bias"] = norm_bias.contiguous()
    norm = tensors.get("weight"), tensors.get("bias"), eps
    first = how.norm_first and norm_weight is not None
    launches = []
    if first and how.kind in ("average", "adaptive", "bilinear"):
        # No model does this: the tokens are normalised into memory, and then pooled.
        tokens = x.new_empty(images, height * width, x.shape[2])
        launches.append(_launch(source, Compression("none"), norm, tokens, False, device))
        tensors["tokens"] = tokens
        canvas = canvases.of_images(height, width, *tokens.stride()[:2])
        source = _Source(tokens, canvas, images, height, width)
        norm, first = (None, None, eps), False
    launches.append(_launch(source, how, norm, y, first, device))
    return Prepared((y,), tuple(launches), tensors, frozenset(("y", "tokens")))
