"""How a model that was built without memory gets its values, one parameter at a time.

A model is built on the meta device; `fill` then allocates each parameter in its final form and lets
a `Source` write the values. A weight that ends up packed is written and packed some rows at a time,
so the peak is the finished model and one block, never a second copy.

On a CPU with our kernels every matrix whose rows fill whole panels is kept as panels, floats too.
"""

from __future__ import annotations

import math
import zlib
from typing import Protocol

import torch
from torch import Tensor, nn

from flashvl.layers import Linear, Norm
from flashvl_kernels import backends, extension
from flashvl_kernels.extension import advise_huge_pages
from flashvl_kernels.packing import FORMATS, LAYOUTS, PackedWeight, pack
from flashvl_kernels.panels import PANEL
from flashvl_kernels.spec import REGISTRY

DTYPES = (torch.bfloat16, torch.float16, torch.float32)

# Bytes of float weights that are packed at once: 0.2 % of a 2 B model, and long enough that a
# block's fixed cost does not show.
BLOCK_BYTES = 4 << 20

# A prime, so that repeating it does not line up with the rows of any matrix.
NORMALS = 1048573


# The ops that take the weights of a model: panels pay only where all of them have a kernel.
MATRIX_OPS = ("linear", "swiglu_mlp", "gelu_mlp", "argmax_head")


class Source(Protocol):
    """Where values come from."""

    def write(self, name: str, out: Tensor, first_row: int) -> None:
        """Fill `out` with the rows of parameter `name` from `first_row` on."""


def resolve_device(device: torch.device | str) -> torch.device:
    """`device` as torch.device; ValueError where this machine does not have it."""
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f'device is {device!r}; needs "cpu", "cuda" or "cuda:N"') from error
    if found.type not in ("cpu", "cuda"):
        raise ValueError(f'device is {str(found)!r}; needs "cpu", "cuda" or "cuda:N"')
    if found.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            raise ValueError(
                f"device is {str(found)!r}, but PyTorch finds no CUDA device here; "
                'use device="cpu", or install a CUDA build of PyTorch and its driver'
            )
        if found.index is None:
            return torch.device("cuda", torch.cuda.current_device())
        if found.index >= count:
            raise ValueError(f"device is {str(found)!r}, but there are {count} CUDA devices")
    return found


def check_dtype(dtype: torch.dtype) -> None:
    """The dtypes a model can have."""
    if dtype not in DTYPES:
        raise ValueError(
            f"dtype is {dtype!r}; a model needs torch.bfloat16, torch.float16 or torch.float32 "
            '(integer weights are asked for with weights="int8" or "int4")'
        )


def check_format(weights: str) -> None:
    """The formats that weights can be kept in."""
    if weights not in FORMATS:
        raise ValueError(f"weights is {weights!r}; needs one of {', '.join(map(repr, FORMATS))}")


def resolve_layout(layout: str, device: torch.device) -> str:
    """`layout`, with "auto" decided: panels where the CPU kernels will run, rows elsewhere."""
    if layout in LAYOUTS:
        return layout
    if layout != "auto":
        known = ", ".join(map(repr, ("auto", *LAYOUTS)))
        raise ValueError(f"layout is {layout!r}; needs one of {known}")
    ready = (
        device.type == "cpu"
        and backends.preference("cpu")[0] == "cpu"
        and all("cpu" in REGISTRY[op].kernels and extension.has(op) for op in MATRIX_OPS)
    )
    return "panels" if ready else "rows"


def fill(
    model: nn.Module,
    source: Source,
    device: torch.device,
    dtype: torch.dtype,
    weights: str,
    layout: str,
) -> None:
    """Give every parameter of `model` memory on `device` and the values of `source`.

    Afterwards no parameter requires a gradient; `model.requires_grad_()` turns training on.
    """
    layout = resolve_layout(layout, device)
    for prefix, module in model.named_modules():
        for attribute, parameter in list(module._parameters.items()):
            if parameter is None:
                continue
            name = f"{prefix}.{attribute}"
            if isinstance(module, Linear) and attribute == "weight":
                kind = weights if module.packable else "bf16"
                whole = module.shape[0] % (module.matrices * PANEL) == 0
                order = layout if whole else "rows"
                if (kind, order) != ("bf16", "rows"):
                    empty = _empty(module.shape, device, dtype, kind, order)
                    _write(source, name, empty, dtype)
                    module.store(empty)
                    continue
            values = advise_huge_pages(torch.empty(parameter.shape, device=device, dtype=dtype))
            source.write(name, values, 0)
            module._parameters[attribute] = nn.Parameter(values, requires_grad=False)


def refill(model: nn.Module, source: Source) -> None:
    """Write the values of `source` into the parameters `model` already has, packing as before."""
    for prefix, module in model.named_modules():
        if isinstance(module, Linear) and module.packed is not None:
            _write(source, f"{prefix}.weight", module.packed, next(model.parameters()).dtype)
        for attribute, parameter in module._parameters.items():
            if parameter is not None:
                source.write(f"{prefix}.{attribute}", parameter.detach(), 0)


def _empty(
    shape: tuple[int, int], device: torch.device, dtype: torch.dtype, weights: str, layout: str
) -> PackedWeight:
    """A packed weight of `shape` without values."""
    one = pack(torch.ones(PANEL, shape[1], device=device, dtype=dtype), weights, layout)
    data = advise_huge_pages(one.data.new_empty((shape[0], *one.data.shape[1:])))
    scale = None if one.scale is None else one.scale.new_empty((shape[0], *one.scale.shape[1:]))
    return PackedWeight(weights, data, scale, shape, layout)


def _write(source: Source, name: str, out: PackedWeight, dtype: torch.dtype) -> None:
    """Pack parameter `name` into `out`, a block of whole panels at a time: a panel, and in rows
    each row, is packed by itself."""
    rows, columns = out.shape
    step = max(1, BLOCK_BYTES // (PANEL * columns * dtype.itemsize)) * PANEL
    block = torch.empty(min(step, rows), columns, device=out.data.device, dtype=dtype)
    for row in range(0, rows, step):
        part = block[: min(step, rows - row)]
        source.write(name, part, row)
        try:
            packed = pack(part, out.format, out.layout)
        except ValueError as error:
            raise ValueError(f"parameter {name}, rows from {row}: {error}") from error
        out.data[row : row + len(part)] = packed.data
        if out.scale is not None and packed.scale is not None:
            out.scale[row : row + len(part)] = packed.scale


class RandomSource:
    """Random values of sane size: the same for one seed and parameter name, in any dtype.

    A parameter repeats up to a million normal numbers of its own: drawing 2 billion would take
    half a minute, and with a prime period no two rows of a matrix come out equal.
    """

    def __init__(self, model: nn.Module, seed: int) -> None:
        self._seed = seed
        self._spread: dict[str, tuple[float, float]] = {}
        self._sizes: dict[str, int] = {}
        for prefix, module in model.named_modules():
            for attribute, parameter in module._parameters.items():
                if parameter is not None:
                    name = f"{prefix}.{attribute}"
                    self._spread[name] = _spread(module, attribute, parameter)
                    self._sizes[name] = parameter.numel()

    def write(self, name: str, out: Tensor, first_row: int) -> None:
        seed = zlib.crc32(f"{self._seed} {name}".encode())
        mean, std = self._spread[name]
        count = min(NORMALS, self._sizes[name])
        generator = torch.Generator().manual_seed(seed)
        values = torch.randn(count, generator=generator).mul_(std).add_(mean).to(out.dtype)
        flat = out.view(-1)
        start = first_row * math.prod(out.shape[1:]) % count
        done = 0
        while done < len(flat):
            piece = values[start : start + len(flat) - done]
            flat[done : done + len(piece)] = piece
            done, start = done + len(piece), 0


def _spread(module: nn.Module, attribute: str, parameter: Tensor) -> tuple[float, float]:
    """Mean and standard deviation. A matrix gets torch.nn.Linear's variance, 1 / (3 inputs)."""
    if isinstance(module, Norm) and attribute == "weight":
        return 1.0, 0.02
    if isinstance(module, Linear) and attribute == "weight":
        return 0.0, (3 * parameter.shape[1]) ** -0.5
    return 0.0, 0.02
