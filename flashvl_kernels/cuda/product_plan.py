"""Launch plans of the matrix products (csrc/cuda/product*.cuh): which kernel, tiles, splits."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from flashvl_kernels.cuda.device import Device
from flashvl_kernels.cuda.launch import (
    TYPES,
    VECTOR_BYTES,
    Instance,
    Launch,
    Prepared,
    Rows,
    address,
    ceil_div,
    rows_of,
    vector_width,
)
from flashvl_kernels.packing import FlatWeight
from flashvl_kernels.panels import GROUP

ACTIVATIONS = (None, "gelu", "gelu_tanh", "silu", "gated")
"""In the order of `Activation` of csrc/cuda/product.cuh."""
FEW_ROWS = 8
"""Rows that one tensor-core product of 16 rows of w takes: kRows of product_few.cuh."""
STAGES = 4
MAX_SPLITS = 32
"""The last block of a tile reads what all left, four splits at a time."""
NORMALISE_BLOCKS = 8
"""Of 128 threads on a multiprocessor."""
BYTES = {"bf16": None, "int8": 1.0, "int4": 0.5}
"""Of a weight; None: those of the dtype."""


@dataclass(frozen=True)
class ProductPlan:
    """kernel: "few", "mma" or "fma"; a tile [rows, columns] of the product; part: columns of x that
    one of the `splits` sums over; shared_bytes: dynamic, of a block."""

    kernel: str
    rows: int
    columns: int
    threads: int
    tiles: int
    splits: int
    part: int
    shared_bytes: int

    @property
    def size(self) -> int:
        """Which instance of a kernel of two tiles: warps along the rows of the tensor-core one,
        columns of a thread of the other."""
        return self.rows // {"few": FEW_ROWS, "mma": 64, "fma": 8}[self.kernel]


def width_of(units: int, gated: bool) -> int:
    """Columns of a product; a gated one takes gates and ups by turns, eight of each."""
    return ceil_div(units, 8) * 16 if gated else units


def plan(
    rows: int,
    units: int,
    columns: int,
    itemsize: int,
    weight_format: str,
    gated: bool,
    device: Device,
) -> ProductPlan:
    """The launch for `rows` rows of `columns` elements and as many results as `units`.

    Few rows: two blocks a multiprocessor keep 32 to 64 KiB of w on their way, and every warp keeps
    at least two batches of loads. Many rows: tiles of 128 x 128 results where these fill the
    device, else of 64 x 128; where those do not, the sum is split too, into parts of at least eight
    steps, so that filling the ring is not most of it. In fp32 few rows are a tile of their own.
    """
    width = width_of(units, gated)
    weight_bytes = BYTES[weight_format] or itemsize
    if itemsize == 4:
        tile, step, resident = (FEW_ROWS if rows <= FEW_ROWS else 64, 64), 16, 2
        if weight_format == "int4" and rows > FEW_ROWS:
            resident = 1  # its registers admit no second block: kBlocks
        # Parts of few rows weigh more than the sums they leave in memory, 3 % of them for 8 rows.
        least = (16 if rows <= FEW_ROWS else 8) * step
    elif rows <= FEW_ROWS:
        lane_columns = int(VECTOR_BYTES / weight_bytes)
        tile, step, resident = (FEW_ROWS, 16), 4 * lane_columns, 2
        least = 8 * 2 * step  # of eight warps
    else:
        tile, step, resident = (64, 128), 32, 2
        if ceil_div(rows, 128) * ceil_div(width, 128) >= device.multiprocessors:
            tile = (128, 128)
        least = 8 * step
    tiles = ceil_div(rows, tile[0]) * ceil_div(width, tile[1])
    splits = max(1, min(resident * device.multiprocessors // tiles, columns // least, MAX_SPLITS))
    if weight_format == "int4":
        step = max(step, GROUP)  # a part has whole groups
    part = max(ceil_div(ceil_div(columns, splits), step), 1) * step
    splits = max(ceil_div(columns, part), 1)
    if itemsize == 4:
        shared = _fma_shared(tile[0], weight_bytes)
        return ProductPlan("fma", *tile, 256, tiles, splits, part, shared)
    if rows <= FEW_ROWS:
        groups = ceil_div(min(part, ceil_div(columns, 8) * 8), GROUP) | 1
        scales = 16 * groups * 4 if weight_format == "int4" else 0
        shared = FEW_ROWS * (20 + 8 * 16) * 4 + scales  # the tile, the sums of eight warps
        return ProductPlan("few", *tile, 256, tiles, splits, part, shared)
    shared = _mma_shared(*tile, weight_bytes)
    return ProductPlan("mma", *tile, 2 * tile[0], tiles, splits, part, shared)


def _fma_shared(rows: int, weight_bytes: float) -> int:
    """The ring of product_fma.cuh, which the sums take over."""
    w_words = {4.0: 16, 1.0: 4, 0.5: 2}[float(weight_bytes)]
    return max(STAGES * (rows * 16 + 64 * w_words) * 4, rows * 68 * 4)


def _mma_shared(rows: int, columns: int, weight_bytes: float) -> int:
    """The ring of product_mma.cuh, which the sums take over. int4: three pairs of steps of w, and
    the scales of twice eight groups."""
    ring = STAGES * rows * 64
    if weight_bytes < 1:
        ring += 3 * columns * 32 + 16 * (columns + 4) * 4
    else:
        ring += STAGES * int(columns * 32 * weight_bytes)
    return max(ring, rows * (columns + 8) * 4)


class NormaliseArgs(ctypes.Structure):
    """NormaliseArgs<T> of csrc/cuda/product_norm.cuh."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "weight", "bias", "y")),
        ("x_rows", Rows),
        *((name, ctypes.c_int64) for name in ("rows", "columns", "padded", "wide")),
        ("eps", ctypes.c_float),
    )


class ProductArgs(ctypes.Structure):
    """ProductArgs<T> of csrc/cuda/product.cuh."""

    _fields_ = (
        *(
            (name, ctypes.c_void_p)
            for name in (
                "x", "w", "scale", "norm_weight", "norm_bias", "bias", "residual", "y", "partial",
                "counters",
            )
        ),
        ("x_rows", Rows),
        ("residual_rows", Rows),
        *(
            (name, ctypes.c_int64)
            for name in (
                "rows", "units", "y_stride", "columns", "padded", "w_stride", "w_words", "splits",
                "part", "activation", "wide",
            )
        ),
        ("eps", ctypes.c_float),
    )  # fmt: skip


def _format_name(weight_format: str, dtype: torch.dtype) -> str:
    plain = f"Plain{8 * dtype.itemsize}"
    return {"bf16": plain, "int8": "Int8", "int4": "Int4"}[weight_format]


def _instance(kernel: str, dtype: torch.dtype, weight_format: str, size: int = 0) -> Instance:
    name, w = TYPES[dtype], _format_name(weight_format, dtype)
    if kernel == "fma":
        return Instance(f"product_fma_kernel<{w}, {size}>", "ProductArgs<float>")
    more = f", {size}" if kernel == "mma" else ""
    return Instance(f"product_{kernel}_kernel<{name}, {w}{more}>", f"ProductArgs<{name}>")


def _normalise_instance(dtype: torch.dtype) -> Instance:
    name = TYPES[dtype]
    return Instance(f"normalise_kernel<{name}>", f"NormaliseArgs<{name}>")


def instances() -> list[Instance]:
    """Every kernel that `product` may name."""
    found = [_normalise_instance(dtype) for dtype in TYPES]
    for weight_format in BYTES:
        found += [_instance("fma", torch.float32, weight_format, size) for size in (1, 8)]
        for dtype in (torch.bfloat16, torch.float16):
            found.append(_instance("few", dtype, weight_format))
            found += [_instance("mma", dtype, weight_format, size) for size in (1, 2)]
    return found


@dataclass
class Products:
    """Launches of one call after another, and the tensors they touch."""

    device: Device
    launches: list[Launch] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    written: set[str] = field(default_factory=set)

    def prepared(self, *outputs: Tensor) -> Prepared:
        """The call, once everything has been added."""
        return Prepared(outputs, tuple(self.launches), self.tensors, frozenset(self.written))

    def keep(self, name: str, tensor: Tensor | None, written: bool = False) -> int:
        """Keeps the tensor of an argument alive; its address."""
        if tensor is None:
            return 0
        self.tensors[name] = tensor
        if written:
            self.written.add(name)
        return address(tensor)

    def scratch(self, name: str, like: Tensor, *shape: int, dtype: torch.dtype) -> Tensor:
        """Working memory that the launches write."""
        tensor = torch.empty(shape, dtype=dtype, device=like.device)
        self.keep(name, tensor, written=True)
        return tensor


def _ending_in_whole_vectors(tensor: Tensor, filler: int = 0) -> Tensor:
    """[rows, n] with every row starting at 16 bytes and followed by `filler` up to the next 16:
    the tensor itself where it is so, else a copy."""
    rows, columns = tensor.shape
    width = VECTOR_BYTES // tensor.element_size()
    strides = (tensor.stride(0),) if rows > 1 else ()
    neighbours = columns == 1 or tensor.stride(1) == 1
    if (
        neighbours
        and vector_width(tensor.element_size(), (columns, *strides), (tensor.data_ptr(),)) == width
    ):
        return tensor
    return F.pad(tensor, (0, -columns % width), value=filler).contiguous()


def _padded_vector(tensor: Tensor | None) -> Tensor | None:
    """A norm's weight or bias, which is read in whole vectors."""
    return None if tensor is None else _ending_in_whole_vectors(tensor[None])[0]


def _padded_rows(x: Tensor) -> tuple[Tensor, Rows]:
    """The rows of x as the product kernels read them."""
    columns, width = x.shape[-1], VECTOR_BYTES // x.element_size()
    if columns % width:
        x = F.pad(x, (0, -columns % width))
    x, rows = rows_of(x)
    if (
        vector_width(x.element_size(), (rows.inner_stride, rows.outer_stride), (x.data_ptr(),))
        != width
    ):
        x, rows = rows_of(x.clone(memory_format=torch.contiguous_format))
    return x, rows


def _normalised(
    work: Products, name: str, x: Tensor, rows: int, norm: tuple[Tensor, Tensor | None, float]
) -> Tensor:
    """Adds the launch that normalises x; [rows, columns padded to 16 bytes]."""
    weight, bias, eps = norm
    columns, width = x.shape[-1], VECTOR_BYTES // x.element_size()
    x, x_rows = rows_of(x)
    y = work.scratch(f"normalised {name}", x, rows, ceil_div(columns, width) * width, dtype=x.dtype)
    weight = weight.contiguous()
    bias = None if bias is None else bias.contiguous()
    addresses = tuple(t.data_ptr() for t in (x, weight, bias) if t is not None)
    wide = vector_width(x.element_size(), (x_rows.inner_stride, x_rows.outer_stride), addresses)
    arguments = NormaliseArgs(
        work.keep(name, x),
        work.keep("norm_weight", weight),
        work.keep("norm_bias", bias),
        address(y),
        x_rows,
        rows,
        columns,
        y.shape[1],
        wide > 1,
        eps,
    )
    grid = min(rows, NORMALISE_BLOCKS * work.device.multiprocessors)
    work.launches.append(Launch(_normalise_instance(x.dtype), (grid, 1, 1), (128, 1, 1), arguments))
    return y


def _weight(work: Products, name: str, w: FlatWeight) -> tuple[int, int, int, int]:
    """Addresses of data and scale, the stride and the length of a row in words."""
    data, scale, weight_format, _ = w
    if data.shape[1] == 0:
        return 0, 0, 0, 0
    data = _ending_in_whole_vectors(data, 0x88 if weight_format == "int4" else 0)
    scale = None if scale is None else scale.contiguous()
    item = data.element_size()
    words = (data.stride(0) if data.shape[0] > 1 else data.shape[1]) * item // 4
    return (
        work.keep(name, data),
        work.keep(f"{name} scale", scale),
        words,
        data.shape[1] * item // 4,
    )


def between(work: Products, name: str, x: Tensor, units: int) -> Tensor:
    """Working memory for the result of a product that the next one reads: [rows, units], rows
    filled with zeros up to a multiple of 16 bytes."""
    rows = x.numel() // x.shape[-1]
    padded = ceil_div(units, VECTOR_BYTES // x.element_size()) * VECTOR_BYTES // x.element_size()
    empty = torch.empty if padded == units else torch.zeros
    tensor = empty((rows, padded), dtype=x.dtype, device=x.device)
    work.keep(name, tensor, written=True)
    return tensor


def product(
    work: Products,
    x: Tensor,
    w: FlatWeight,
    y: Tensor,
    *,
    names: tuple[str, str, str],
    bias: Tensor | None = None,
    activation: str | None = None,
    residual: Tensor | None = None,
    norm: tuple[Tensor | None, Tensor | None, float] = (None, None, 0.0),
) -> None:
    """Adds the launches of y = activation(norm(x) @ w.T + bias) + residual to `work`.

    y: contiguous, of at least one element; rows may go on past their results, as rows of x past
    w's columns. activation "gated": silu of the first half of w's rows times the second. names:
    what x, w and y are called.
    """
    gated, columns = activation == "gated", w[3]
    units = w[0].shape[0] // (2 if gated else 1)
    rows = y.numel() // y.shape[-1]
    chosen = plan(rows, units, columns, x.element_size(), w[2], gated, work.device)
    norm_weight, norm_bias, eps = norm
    if norm_weight is not None and chosen.kernel != "few" and columns:
        x = _normalised(work, names[0], x, rows, (norm_weight, norm_bias, eps))
        norm_weight = norm_bias = None
    if columns:
        x, x_rows = _padded_rows(x)
        norm_weight, norm_bias = _padded_vector(norm_weight), _padded_vector(norm_bias)
    else:
        x_rows, norm_weight, norm_bias = Rows(rows, 0, 0), None, None
    if columns and address(x) not in map(address, work.tensors.values()):
        work.keep(names[0], x)
    residual_rows = Rows(rows, units, 0)
    if residual is not None:
        residual, residual_rows = rows_of(residual)
    bias = None if bias is None else bias.contiguous()
    wide = _is_wide(y, bias, residual, residual_rows, units)
    w_data, w_scale, w_stride, w_words = _weight(work, names[1], w)
    partial = counters = None
    if chosen.splits > 1:
        size = chosen.tiles * chosen.splits * chosen.rows * chosen.columns
        partial = work.scratch(f"partial {names[2]}", y, size, dtype=torch.float32)
        counters = torch.zeros(chosen.tiles, dtype=torch.int32, device=y.device)
    arguments = ProductArgs(
        address(x),
        w_data,
        w_scale,
        work.keep("norm_weight", norm_weight),
        work.keep("norm_bias", norm_bias),
        work.keep(f"bias {names[2]}", bias),
        work.keep(f"residual {names[2]}", residual),
        work.keep(names[2], y, written=True),
        address(partial),
        work.keep(f"counters {names[2]}", counters, written=True),
        x_rows,
        residual_rows,
        rows,
        units,
        y.shape[-1],
        columns,
        x.shape[-1] if columns else 0,
        w_stride,
        w_words,
        chosen.splits,
        chosen.part,
        ACTIVATIONS.index(activation),
        wide,
        eps,
    )
    launch = Launch(
        _instance(chosen.kernel, y.dtype, w[2], chosen.size),
        (chosen.tiles, chosen.splits, 1),
        (chosen.threads, 1, 1),
        arguments,
        chosen.shared_bytes,
    )
    work.launches.append(launch)


def _is_wide(
    y: Tensor, bias: Tensor | None, residual: Tensor | None, rows: Rows, units: int
) -> bool:
    """Whether four results of y, and of what is added to them, lie in one aligned access."""
    four = 4 * y.element_size()
    strides = (units, y.shape[-1], rows.inner_stride, rows.outer_stride)
    addresses = (address(y), address(bias), address(residual))
    return all(s % 4 == 0 for s in strides) and all(a % four == 0 for a in addresses)


def why_not_weight(argument: str, weight_format: Any) -> str | None:
    """The kernels read the layout "rows"."""
    if str(weight_format).endswith("_panels"):
        return f"{argument} is in panels, the CPU's layout; pack it in the layout 'rows'"
    return None
