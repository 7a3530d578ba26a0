"""Weight formats: plain floats, int8 with a scale per output channel, int4 with a scale per group.

The integer formats are symmetric (no zero point): w ~ q * scale, scale = amax / qmax, q rounded
to nearest.

    format  data                                    scale                      q
    bf16    w itself [N, K], its own float dtype    None                       -
    int8    int8 [N, K]                             fp32 [N]                   -127 .. 127
    int4    uint8 [N, ceil(K/2)], low nibble first  fp32 [N, ceil(K/128)]      -7 .. 7, as q + 8

An odd K ends in a nibble of q = 0; the last group of 128 may be short. That is the layout "rows";
"panels" (panels.py) holds the same weights in the order the CPU kernels read them, and is what a
model keeps. There the formats are called bf16_panels, int8_panels and int4_panels.

int4 leaves -8 unused. Using it (scale = amax / 8) makes the steps 12 % finer, but the weight at
the positive end then clips and is off by a whole step. With -7 .. 7 nothing clips, and one bound
holds for every weight:

    |w - q * scale| <= scale / 2, and float32 rounding of at most scale * qmax * 2**-23

that is, 0.4 % (int8) or 7.2 % (int4) of the largest weight that shares the scale. Dequantising to
bf16 or fp16 rounds once more, by at most 2**-8 or 2**-11 of the weight. A nibble holds q + 8 and
not two's complement because decoding is then a mask and a subtraction, with no sign extension.

Rows are packed and dequantised some at a time: at once, a 151936 x 1536 vocabulary would need
0.9 GB of float32 beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from flashvl_kernels import checks, panels
from flashvl_kernels.extension import advise_huge_pages
from flashvl_kernels.panels import GROUP, INT4_ZERO, PANEL

FORMATS = ("bf16", "int8", "int4")
LAYOUTS = ("rows", "panels")
QMAX = {"int8": 127, "int4": 7}

# 2^18 weights are 1 MiB of float32: the passes over a block of rows stay in the cache.
CHUNK_ELEMENTS = 1 << 18

_SCALES = (torch.float32, torch.float64)  # float64 is how the oracle sees a scale
_HINT = "Build packed weights with pack(w, format, layout)."

FlatWeight = tuple[Tensor, Tensor | None, str, int]

# A flat weight's format to (format, layout): "int8" is int8 rows, "int8_panels" int8 panels.
_FLAT = {
    format + suffix: (format, layout)
    for layout, suffix in (("rows", ""), ("panels", "_panels"))
    for format in FORMATS
}
_FLAT_NAME = {kind: name for name, kind in _FLAT.items()}


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """A weight matrix in one of ``FORMATS`` and ``LAYOUTS``; ``pack`` builds it.

    ``shape`` is the (N, K) of the matrix it stands for, whatever the storage.
    """

    format: str
    data: Tensor
    scale: Tensor | None
    shape: tuple[int, int]
    layout: str = "rows"

    def __post_init__(self) -> None:
        for name, value in (("data", self.data), ("scale", self.scale)):
            if not isinstance(value, Tensor) and (value is not None or name == "data"):
                raise TypeError(
                    f"PackedWeight: {name} is a {type(value).__name__}; needs a torch.Tensor. "
                    f"{_HINT}"
                )
        _check_format("PackedWeight", self.format)
        _check_layout("PackedWeight", self.layout)
        check_weight("PackedWeight", "data", self.flat())
        if self.shape[0] != self.data.shape[0]:
            got = f"is {tuple(self.shape)}"
            checks.fail(
                "PackedWeight", "shape", got, f"{self.data.shape[0]} rows as in data", _HINT
            )

    @property
    def nbytes(self) -> int:
        """Bytes held: data and scales."""
        return self.data.nbytes + (0 if self.scale is None else self.scale.nbytes)

    def flat(self) -> FlatWeight:
        """(data, scale, format, columns): how op schemas take a weight."""
        return self.data, self.scale, _FLAT_NAME[self.format, self.layout], self.shape[1]

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """The matrix [N, K] in ``dtype``; plain rows already in ``dtype`` come back uncopied."""
        if self.format == "bf16" and self.layout == "rows":
            return self.data.to(dtype)
        out = self.data.new_empty(self.shape, dtype=dtype)
        row = 0
        for block in dequantized_rows(*self.flat(), dtype):
            out[row : row + len(block)] = block
            row += len(block)
        return out

    def to(self, device: torch.device | str) -> PackedWeight:
        """The same weight on another device."""
        scale = None if self.scale is None else self.scale.to(device)
        return PackedWeight(self.format, self.data.to(device), scale, self.shape, self.layout)


def pack(w: Tensor, format: str, layout: str = "rows") -> PackedWeight:
    """Packs the matrix w [N, K] (bf16, fp16, fp32 or fp64) into ``format``.

    layout: "rows", or "panels", which needs N to be a multiple of 16 and runs fastest on a CPU. The
    values are the same in both. "bf16" rows are w itself, unread and uncopied, so that a
    memory-mapped checkpoint stays mapped. The integer formats raise ValueError for a row that holds
    NaN, Inf, or a magnitude so near the end of float32 that q * scale would overflow.
    """
    _check_format("pack", format)
    _check_layout("pack", layout)
    checks.is_float("pack", "w", w)
    checks.rank("pack", "w", w, "[N, K]")
    rows, columns = w.shape
    if format == "bf16" and layout == "rows":
        return PackedWeight("bf16", w, None, (rows, columns))
    if format != "bf16" and columns == 0:
        checks.fail(
            "pack", "w", f"has shape {[rows, 0]}", "at least one column", "Keep it as it is."
        )
    if layout == "panels":
        _check_panel_rows("pack", "w", rows)

    dtype, width, scale_shape = _storage(format, layout, rows, columns)
    data = advise_huge_pages(w.new_empty((rows, width), dtype=dtype or w.dtype))
    scale = None if scale_shape is None else w.new_empty(scale_shape, dtype=torch.float32)
    step = _rows_at_a_time(columns)
    filled = 0 if w.is_meta else rows  # a meta tensor has no values
    with torch.no_grad():
        for row in range(0, filled, step):
            block = w[row : row + step]
            if scale is None:
                data[row : row + step] = panels.floats_to_panels(block)
                continue
            q, s = _quantize(block.to(torch.float32), format, layout)
            peak = s * QMAX[format]
            if not torch.isfinite(peak).all():
                raise ValueError(_not_packable(w, row, step, format))
            data[row : row + step] = q
            scale[row : row + step] = s
    return PackedWeight(format, data, scale, (rows, columns), layout)


def flat_weight(op: str, argument: str, w: Tensor | PackedWeight) -> FlatWeight:
    """The four schema arguments for a weight given to a public op."""
    if isinstance(w, PackedWeight):
        return w.flat()
    if isinstance(w, Tensor):
        return w, None, "bf16", w.shape[-1] if w.dim() else 0
    raise TypeError(
        f"{op}: {argument} is a {type(w).__name__}; needs a torch.Tensor or a PackedWeight. {_HINT}"
    )


def project(
    x: Tensor,
    data: Tensor,
    scale: Tensor | None,
    format: str,
    columns: int,
    bias: Tensor | None = None,
) -> Tensor:
    """``F.linear`` on a flat weight; all but float rows are unpacked block by block."""
    if format == "bf16":
        return F.linear(x, data, bias)
    parts, row = [x.new_empty((*x.shape[:-1], 0))], 0
    for block in dequantized_rows(data, scale, format, columns, x.dtype):
        rows = slice(row, row + len(block))
        parts.append(F.linear(x, block, None if bias is None else bias[rows]))
        row = rows.stop
    return torch.cat(parts, dim=-1)


def dequantized_rows(
    data: Tensor, scale: Tensor | None, format: str, columns: int, dtype: torch.dtype
) -> Iterator[Tensor]:
    """A flat weight as consecutive blocks of rows in ``dtype``: q * scale in float32, rounded."""
    kind, layout = _FLAT[format]
    step = _rows_at_a_time(columns)
    for row in range(0, data.shape[0], step):
        block = data[row : row + step]
        if scale is None:
            rows = panels.floats_to_rows(block, columns) if layout == "panels" else block
            yield rows.to(dtype)
            continue
        unpack = _unpacked_int8 if kind == "int8" else _unpacked_int4
        q, s = unpack(block, scale[row : row + step], layout, columns)
        wide = torch.promote_types(dtype, torch.float32)
        yield q.to(wide).mul_(s.to(wide)[..., None]).to(dtype).flatten(1)[:, :columns]


def _unpacked_int8(data: Tensor, scale: Tensor, layout: str, columns: int) -> tuple[Tensor, Tensor]:
    """q [n, K] and its scale [n]."""
    return (panels.int8_to_rows(data, columns) if layout == "panels" else data), scale


def _unpacked_int4(data: Tensor, scale: Tensor, layout: str, columns: int) -> tuple[Tensor, Tensor]:
    """q [n, groups, 128] and its scale [n, groups]."""
    if layout == "panels":
        nibbles, scale = panels.int4_to_nibbles(data), panels.scales_to_rows(scale)
    else:
        nibbles = torch.stack((data & 15, data >> 4), dim=-1).flatten(1)
    return _in_groups(nibbles.view(torch.int8) - INT4_ZERO), scale


def check_weight(op: str, argument: str, weight: FlatWeight) -> None:
    """Checks that the parts of a flat weight fit together. Reads shapes and dtypes only."""
    data, scale, flat_format, columns = weight
    if flat_format not in _FLAT:
        checks.fail(op, "format", f"is {flat_format!r}", f"one of {', '.join(_FLAT)}", _HINT)
    format, layout = _FLAT[flat_format]
    checks.rank(op, argument, data, "[N, K]")
    rows, width = data.shape
    if format == "bf16":
        checks.is_float(op, argument, data)
    if layout == "panels":
        _check_panel_rows(op, argument, rows)
    elif format == "bf16":
        if scale is not None or columns != width:
            extra = "with a scale" if scale is not None else f"as {columns} columns"
            checks.fail(op, argument, f"is {list(data.shape)} {extra}", "plain rows [N, K]", _HINT)
        return
    need_dtype, need_width, need_scale = _storage(format, layout, rows, columns)
    if width != need_width or data.dtype != (need_dtype or data.dtype):
        got = f"has data of {checks.name(data.dtype)} {list(data.shape)}"
        kind = "" if need_dtype is None else f"{checks.name(need_dtype)} "
        needs = f"{kind}{[rows, need_width]} for {columns} columns of {flat_format}"
        checks.fail(op, argument, got, needs, _HINT)
    _check_scale(op, argument, weight, need_scale)


def _check_scale(op: str, argument: str, weight: FlatWeight, shape: tuple[int, ...] | None) -> None:
    data, scale, format, _ = weight
    if shape is None:
        if scale is not None:
            got = f"has a scale {list(scale.shape)}"
            checks.fail(op, argument, got, f"none for {format}", _HINT)
        return
    if scale is None or scale.dtype not in _SCALES or tuple(scale.shape) != shape:
        got = "None" if scale is None else f"{checks.name(scale.dtype)} {list(scale.shape)}"
        needs = f"float32 {list(shape)} for {format}"
        checks.fail(op, argument, f"has the scale {got}", needs, _HINT)
    checks.same_device(op, f"{argument}.scale", scale, data, f"{argument}.data")


def check_operand(op: str, argument: str, weight: FlatWeight, x: Tensor, channels: int) -> None:
    """Checks a flat weight [N, channels] that is to multiply rows of x's dtype."""
    check_weight(op, argument, weight)
    data, scale, _, columns = weight
    if scale is None:
        checks.same_dtype(op, argument, data, x)
    else:
        checks.same_device(op, argument, data, x)
    if columns != channels:
        checks.fail(
            op,
            argument,
            f"has {columns} columns",
            f"{channels}, one for each channel it multiplies",
            f"Check that {argument} is [out, in], as in torch.nn.Linear.",
        )


def _check_format(op: str, format: str) -> None:
    if format not in FORMATS:
        checks.fail(op, "format", f"is {format!r}", f"one of {', '.join(FORMATS)}", _HINT)


def _check_layout(op: str, layout: str) -> None:
    if layout not in LAYOUTS:
        checks.fail(op, "layout", f"is {layout!r}", f"one of {', '.join(LAYOUTS)}", _HINT)


def _check_panel_rows(op: str, argument: str, rows: int) -> None:
    if rows % PANEL:
        needs = f"a multiple of {PANEL} for panels"
        checks.fail(op, argument, f"has {rows} rows", needs, "Keep such a weight in layout 'rows'.")


def _storage(
    format: str, layout: str, rows: int, columns: int
) -> tuple[torch.dtype | None, int, tuple[int, ...] | None]:
    """dtype (None: the weight's own) and width of data, and shape of scale (None: it has none)."""
    width = panels.padded(format, columns) if layout == "panels" else columns
    if format == "bf16":
        return None, width, None
    if format == "int8":
        return (torch.uint8 if layout == "panels" else torch.int8), width, (rows,)
    return torch.uint8, (width + 1) // 2, (rows, (columns + GROUP - 1) // GROUP)


def _rows_at_a_time(columns: int) -> int:
    """Whole panels, in the layout of rows too, so that both are packed in the same blocks."""
    return max(1, CHUNK_ELEMENTS // (PANEL * max(1, columns))) * PANEL


def _in_groups(block: Tensor) -> Tensor:
    """[n, K] -> [n, ceil(K/128), 128]; a short last group is filled with zeros."""
    short = -block.shape[1] % GROUP
    return (F.pad(block, (0, short)) if short else block).unflatten(1, (-1, GROUP))


def _scale(amax: Tensor, qmax: int) -> Tensor:
    # Below the smallest normal number a scale has too few bits for the bound, and 0 / 0 is NaN:
    # rows of zeros or subnormals take the smallest normal scale and err by at most 6e-39.
    return (amax / qmax).clamp_min_(torch.finfo(torch.float32).tiny)


def _quantize(w: Tensor, format: str, layout: str) -> tuple[Tensor, Tensor]:
    """A block of float32 rows as data and scale."""
    if format == "int8":
        s = _scale(w.abs().amax(dim=1), QMAX["int8"])
        q = (w / s[:, None]).round_().to(torch.int8)
        return (panels.int8_to_panels(q) if layout == "panels" else q), s
    grouped = _in_groups(w)
    s = _scale(grouped.abs().amax(dim=2), QMAX["int4"])
    q = (grouped / s[:, :, None]).round_().add_(INT4_ZERO).to(torch.uint8).flatten(1)
    if layout == "panels":
        return panels.int4_to_panels(q), panels.scales_to_panels(s)
    q = q[:, : (w.shape[1] + 1) // 2 * 2]
    return q[:, 0::2] | (q[:, 1::2] << 4), s


def _not_packable(w: Tensor, first_row: int, rows: int, format: str) -> str:
    for row in range(first_row, min(first_row + rows, len(w))):
        values = w[row].to(torch.float32)
        largest = values.abs().amax()
        if not torch.isfinite(_scale(largest, QMAX[format]) * QMAX[format]):
            break
    what = "NaN" if values.isnan().any() else f"a magnitude of {largest.item():.7g}"
    return (
        f"pack: w holds {what} in row {row}; needs finite weights for {format}. "
        f"Repair the row, or keep the weight unquantised with pack(w, 'bf16')."
    )
