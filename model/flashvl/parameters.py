"""How a model that was built without memory gets its values, one parameter at a time.

A model is built on the meta device; `fill` then allocates each parameter in its final form and lets
a `Source` write the values. A weight that ends up packed is written and packed some rows at a time,
so the peak is the finished model and one block, never a second copy.
"""

from __future__ import annotations

import math
import zlib
from typing import Protocol, TypeGuard

import torch
from torch import Tensor, nn

from flashvl.layers import Linear, Norm
from flashvl_kernels.packing import FORMATS, PackedWeight, pack

DTYPES = (torch.bfloat16, torch.float16, torch.float32)

# Bytes of float weights that are packed at once: 0.2 % of a 2 B model, and long enough that a
# block's fixed cost does not show.
BLOCK_BYTES = 4 << 20

# A prime, so that repeating it does not line up with the rows of any matrix.
NORMALS = 1048573


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


def fill(
    model: nn.Module, source: Source, device: torch.device, dtype: torch.dtype, weights: str
) -> None:
    """Give every parameter of `model` memory on `device` and the values of `source`.

    Afterwards no parameter requires a gradient; `model.requires_grad_()` turns training on.
    """
    for prefix, module in model.named_modules():
        for attribute, parameter in list(module._parameters.items()):
            if parameter is None:
                continue
            name = f"{prefix}.{attribute}"
            if _is_packable(module, attribute) and weights != "bf16":
                module.store(_packed(source, name, module.shape, device, dtype, weights))
                continue
            values = torch.empty(parameter.shape, device=device, dtype=dtype)
            source.write(name, values, 0)
            module._parameters[attribute] = nn.Parameter(values, requires_grad=False)


def _is_packable(module: nn.Module, attribute: str) -> TypeGuard[Linear]:
    return isinstance(module, Linear) and attribute == "weight" and module.packable


def refill(model: nn.Module, source: Source) -> None:
    """Write the values of `source` into the parameters `model` already has, packing as before."""
    for prefix, module in model.named_modules():
        if isinstance(module, Linear) and module.packed is not None:
            old = module.packed
            dtype = next(model.parameters()).dtype
            name = f"{prefix}.weight"
            module.store(_packed(source, name, module.shape, old.data.device, dtype, old.format))
        for attribute, parameter in module._parameters.items():
            if parameter is not None:
                source.write(f"{prefix}.{attribute}", parameter.detach(), 0)


def _packed(
    source: Source,
    name: str,
    shape: tuple[int, int],
    device: torch.device,
    dtype: torch.dtype,
    weights: str,
) -> PackedWeight:
    """Pack `name` in blocks of rows: both integer formats scale each row by itself."""
    rows, columns = shape
    step = max(1, BLOCK_BYTES // (columns * dtype.itemsize))
    block = torch.empty(min(step, rows), columns, device=device, dtype=dtype)
    data = scale = None
    for row in range(0, rows, step):
        part = block[: min(step, rows - row)]
        source.write(name, part, row)
        try:
            packed = pack(part, weights)
        except ValueError as error:
            raise ValueError(f"parameter {name}, rows from {row}: {error}") from error
        assert packed.scale is not None
        if data is None or scale is None:
            data = packed.data.new_empty((rows, *packed.data.shape[1:]))
            scale = packed.scale.new_empty((rows, *packed.scale.shape[1:]))
        data[row : row + len(part)] = packed.data
        scale[row : row + len(part)] = packed.scale
    assert data is not None
    return PackedWeight(weights, data, scale, shape)


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
