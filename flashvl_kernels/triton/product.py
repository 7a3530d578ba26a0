"""The parts of a matrix product: tiles of x and of the weight, one step of sums, the blocks.

Every product here is y = n @ w.T with n the rows of x, normalised in a launch before it, and w in
the layout "rows" of packing.py. A tile of integer weights is decoded in registers: q is exact in
bf16, so the tensor cores multiply q itself and the scale multiplies the fp32 sums (LLM.int8(),
arXiv 2208.07339; groups of AWQ, arXiv 2306.00978), once a row for int8, a group of 128 for int4.
That is more exact than a weight rounded to the dtype, and a step costs no multiplication for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from flashvl_kernels.packing import FlatWeight
from flashvl_kernels.triton import launch, layer_norm, rms_norm
from flashvl_kernels.triton.launch import Device


@triton.jit
def input_tile(x_rows, row, rows, column, columns, x_stride):  # type: ignore[no-untyped-def]
    """x [rows of the tile, columns of the step], zero past the last column.

    x_rows, row: [R, 1]; column: [1, K].
    """
    return tl.load(x_rows + column * x_stride, (row < rows) & (column < columns), 0.0)


@triton.jit
def from_nibble(nibble, dtype):  # type: ignore[no-untyped-def]
    """nibble - 8. An instruction that converts an integer has a quarter of the rate of an addition
    at most, and every weight passes through here. So the nibble becomes the last bits of the
    fraction of 128 in bf16, of 1024 in fp16, where they count 1: 136 and 1032 are taken off."""
    if dtype == tl.bfloat16:
        number = (nibble.to(tl.int16) | 0x4300).to(tl.bfloat16, bitcast=True) - 136.0
    elif dtype == tl.float16:
        number = (nibble.to(tl.int16) | 0x6400).to(tl.float16, bitcast=True) - 1032.0
    else:
        number = (nibble.to(tl.int32) | 0x4B000000).to(tl.float32, bitcast=True) - 8388616.0
    return number.to(dtype)


@triton.jit
def weight_tile(w_rows, inside, first, columns, stride, dtype, FORMAT: tl.constexpr, STEP: tl.constexpr):  # type: ignore[no-untyped-def] # fmt: skip # noqa: E501
    """w, or q of an integer format, [U, STEP] from column `first`; w_rows, inside: [U, 1]."""
    if FORMAT == "int4":
        byte = first // 2 + tl.arange(0, STEP // 2)[None, :].to(tl.int64)
        pairs = tl.load(w_rows + byte * stride, inside & (byte * 2 < columns), 0x88)
        return tl.interleave(from_nibble(pairs & 15, dtype), from_nibble(pairs >> 4, dtype))
    column = first + tl.arange(0, STEP)[None, :].to(tl.int64)
    tile = tl.load(w_rows + column * stride, inside & (column < columns), 0)
    return tile.to(dtype)


@triton.jit
def add_product(
    sums, tile, w_rows, inside, first, columns, w_stride, scale_rows, scale_stride,
    FORMAT: tl.constexpr, STEP: tl.constexpr,
):  # type: ignore[no-untyped-def] # fmt: skip
    """sums + tile @ w.T [R, U] over one step; the step lies inside one group of int4."""
    w = tl.trans(weight_tile(w_rows, inside, first, columns, w_stride, tile.dtype, FORMAT, STEP))
    if FORMAT == "int4":
        scale = tl.load(scale_rows + first // 128 * scale_stride, inside, 0.0)
        return sums + tl.dot(tile, w, input_precision="ieee") * tl.trans(scale)
    if tile.dtype == tl.float32:
        # One chain of fp32 sums as long as the row errs by more than twice a blocked sum does. A
        # chain a step: from a zero the compiler cannot see, or it makes it one chain again.
        zero = tl.zeros_like(sums) + tl.where(first < 0, 1.0, 0.0)
        return sums + tl.dot(tile, w, zero, input_precision="ieee")
    return tl.dot(tile, w, sums, input_precision="ieee")


@triton.jit
def scaled(sums, scale_rows, inside, FORMAT: tl.constexpr):  # type: ignore[no-untyped-def]
    """The sums of int8 weights times the scale of their row; others as they are."""
    if FORMAT == "int8":
        sums *= tl.trans(tl.load(scale_rows, inside, 0.0))
    return sums


@triton.jit
def tile_of(program, row_tiles, unit_tiles):  # type: ignore[no-untyped-def]
    """The (row, unit) tile of a program. Row tiles run fastest, 16 at most, so that neighbours in
    time share a weight tile, and the x they read between two of them stays in the L2 cache."""
    group = program // (16 * unit_tiles)
    within = program % (16 * unit_tiles)
    height = min(row_tiles - group * 16, 16)
    return group * 16 + within % height, within // height


@triton.jit
def activated(y, ACTIVATION: tl.constexpr):  # type: ignore[no-untyped-def]
    """The activation of fp32 values. tanh is written through the sigmoid, which loses nothing where
    1 + tanh would cancel."""
    if ACTIVATION == "gelu":
        y = 0.5 * y * (1.0 + tl.erf(y * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        y = y / (1.0 + tl.exp(-1.5957691216057308 * (y + 0.044715 * y * y * y)))
    elif ACTIVATION == "silu":
        y = y / (1.0 + tl.exp(-y))
    return y


@dataclass(frozen=True)
class Blocks:
    """The tile of one program [rows, units], the columns of a step, the parts the sum over columns
    is split into, and their length."""

    rows: int
    units: int
    step: int
    splits: int
    part: int
    warps: int
    stages: int


def blocks(
    rows: int, units: int, columns: int, itemsize: int, device: Device, *, gated: bool = False
) -> Blocks:
    """The blocks of a product [rows, columns] @ [units, columns].T; gated: two weight tiles.

    Few rows are bound by reading w: 16 rows are the least of a tensor core, 64 units in four stages
    keep 64 KiB on their way to each processor, and the sum over columns is split, in parts of two
    steps or more, until every processor has a tile. Many rows are bound by arithmetic: 128 x 128
    results a tile read 1/64 of an operand each; halved while processors would go without. On an
    H100 (`tune`) 128 x 128 in five stages were faster from half as many tiles as processors on,
    64 x 64 in six below that, and of few rows 32 units where 64 would be a tile for every second
    processor or more; ptxas spilled 8 bytes of 64 on sm_80 and sm_100, which take 32 too.
    A processor of 100 KiB gets three stages, two programs of few rows beside each other. fp32
    multiplies on the plain cores, with operands in registers, and stays at 64 x 64; its steps of 16
    columns are the chains of `add_product`. mma.sync has a step of both gated tiles in registers,
    which with 64 columns spill (8 bytes on sm_80, 32 on sm_120): it takes 32 columns, in twice the
    stages.
    """
    height = min(max(launch.power_of_two(rows), 16), 64 if itemsize == 4 else 128)
    width = 64 if height < 128 or gated else 128
    step = 16 if itemsize == 4 else 128 if height <= 32 else 64
    halved = gated and step == 64 and device.capability in (80, 86, 89, 120)
    if halved:
        step = 32

    def tiles() -> int:
        return launch.ceil_div(rows, height) * launch.ceil_div(units, width)

    hopper = device.capability == 90 and itemsize == 2 and not (gated and height == 128)
    narrow = device.capability in (80, 90, 100) and itemsize == 2 and height <= 32
    if hopper and height == 128:
        height = width = 128 if 2 * tiles() >= device.multiprocessors else 64
    elif narrow and 2 * tiles() >= device.multiprocessors:
        width = 32
    elif height == 128 and tiles() < device.multiprocessors:
        width = 64
        if tiles() < device.multiprocessors:
            height = 64
    steps = launch.ceil_div(columns, step)
    splits = 1 if gated else max(min(device.multiprocessors // max(tiles(), 1), steps // 2), 1)
    part = launch.ceil_div(steps, splits) * step
    stage = (height + width * (2 if gated else 1)) * step * itemsize
    most = (4 if device.shared_bytes_per_block >= 163840 else 3) * (2 if halved else 1)
    if hopper and step == 64:
        most = 5 if height == 128 else 6
    stages = 2 if device.amd else max(min(most, device.shared_bytes_per_block // stage), 2)
    splits = launch.ceil_div(columns, part) if part else 1
    warps = 8 if height == 128 and not device.amd else 4
    return Blocks(height, width, step, splits, part, warps, stages)


def normalised(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """The rows as the product reads them: a launch of rms_norm or layer_norm, or x itself.

    Normalised on its way into a product, a tile of x would leave shared memory for registers at
    every step, and again for every tile of units, while the tensor cores wait. The rows written
    once more are few bytes beside w, or few beside the arithmetic.
    """
    if weight is None or x.numel() == 0:
        return x
    if bias is None:
        return rms_norm.run(x, weight, eps, None)[0]
    return layer_norm.run(x, weight, bias, eps, None)[0]


def weight_arguments(w: FlatWeight) -> tuple[Tensor | int, ...]:
    """data, its strides, scale, its strides, as kernels take a weight."""
    data, scale, _, _ = w
    if scale is None:
        return data, *data.stride(), data, 0, 0
    inner = scale.stride(1) if scale.dim() == 2 else 0
    return data, *data.stride(), scale, scale.stride(0), inner


def why_not_operand(argument: str, w: FlatWeight) -> str | None:
    """The kernels read the layout "rows"."""
    if w[2].endswith("_panels"):
        return f"{argument} is in panels, the CPU's layout; pack it in the layout 'rows'"
    return None


def why_not_norm(x: Tensor, norm_weight: Tensor | None) -> str | None:
    """The norm keeps a row in registers."""
    return None if norm_weight is None else rms_norm.why_not(x, norm_weight, 0.0, None)
