"""The panel layout of packed weights: 16 rows at a time, in the order the CPU kernels read them.

A panel is 16 rows (output channels) of a matrix [N, K]; of each step along K it holds 64 bytes that
serve all 16 (float32: 128), so a kernel reads a weight once, in order, with full loads. K is padded
with zero weights to a multiple of 32 (int4: of its group of 128). csrc/cpu/matrix/weights.h states
the same:

    format  data, seen from outside   contents
    bf16    [N, Kp], its own dtype    [N/16][Kp/2][16][2]
    int8    uint8 [N, Kp]             [N/16][Kp/4][16][4], q + 128; scale [N]
    int4    uint8 [N, Kp/2]           [N/16][Kp/8][16][4], two nibbles of q + 8: byte b of step j
                                      holds k = 8j + b (low) and k = 8j + 4 + b (high);
                                      scale [N, Kp/128] holds [N/16][Kp/128][16]

N stays the first dimension, so that a run of whole panels is a slice of rows. The order of floats
does not depend on their dtype: a cast commutes with it.
"""

from __future__ import annotations

import torch
from torch import Tensor

PANEL = 16  # rows of a panel
DEPTH = 32  # K is padded to a multiple of this, one AMX tile deep
GROUP = 128  # input channels that share an int4 scale; K of int4 is padded to whole groups

INT8_ZERO = 128  # the byte that stands for q = 0: dot products take weights unsigned
INT4_ZERO = 8  # the nibble that stands for q = 0

_UNIT = {"bf16": 2, "int8": 4, "int4": 4}  # elements of a row that lie together


def padded(format: str, columns: int) -> int:
    """`columns` rounded up to what panels of `format` hold."""
    whole = GROUP if format == "int4" else DEPTH
    return (columns + whole - 1) // whole * whole


def floats_to_panels(rows: Tensor) -> Tensor:
    """w [n, K], n a multiple of 16, to panels [n, Kp]."""
    return _interleave(_filled(rows, padded("bf16", rows.shape[1]), 0), _UNIT["bf16"])


def floats_to_rows(panels: Tensor, columns: int) -> Tensor:
    """Panels [n, Kp] to the matrix [n, columns]; differentiable."""
    return _separate(panels, _UNIT["bf16"])[:, :columns]


def int8_to_panels(q: Tensor) -> Tensor:
    """q int8 [n, K] to panels uint8 [n, Kp]."""
    # Flipping the top bit of two's complement adds 128.
    unsigned = q.view(torch.uint8) ^ INT8_ZERO
    return _interleave(_filled(unsigned, padded("int8", q.shape[1]), INT8_ZERO), _UNIT["int8"])


def int8_to_rows(panels: Tensor, columns: int) -> Tensor:
    """Panels uint8 [n, Kp] to q int8 [n, columns]."""
    return (_separate(panels, _UNIT["int8"])[:, :columns] ^ INT8_ZERO).view(torch.int8)


def int4_to_panels(nibbles: Tensor) -> Tensor:
    """q + 8 of uint8 [n, Kp], one a byte and whole groups, to panels uint8 [n, Kp/2]."""
    steps = nibbles.unflatten(1, (-1, 2, 4))
    return _interleave((steps[:, :, 0] | steps[:, :, 1] << 4).flatten(1), _UNIT["int4"])


def int4_to_nibbles(panels: Tensor) -> Tensor:
    """Panels uint8 [n, Kp/2] to q + 8 of uint8 [n, Kp], one a byte."""
    steps = _separate(panels, _UNIT["int4"]).unflatten(1, (-1, 4))
    return torch.stack((steps & 15, steps >> 4), dim=2).flatten(1)


def scales_to_panels(scale: Tensor) -> Tensor:
    """int4 scales [n, groups] to the order of the panels."""
    return _interleave(scale, 1)


def scales_to_rows(scale: Tensor) -> Tensor:
    """int4 scales in the order of the panels to [n, groups]."""
    return _separate(scale, 1)


def _filled(rows: Tensor, columns: int, zero: int) -> Tensor:
    """A copy of `rows`, contiguous and filled up to `columns` with `zero`."""
    out = rows.new_full((rows.shape[0], columns), zero)
    out[:, : rows.shape[1]] = rows
    return out


# A unit is moved as one integer where there is one of its size: 8 GB/s on one core, not 1.5.
_WHOLE = {4: torch.int32, 8: torch.int64}


def _interleave(rows: Tensor, unit: int) -> Tensor:
    """Contiguous rows [n, W] to the same shape, ordered [n/16][W/unit][16][unit]."""
    whole = _WHOLE.get(unit * rows.element_size())
    if whole is not None and whole != rows.dtype:
        return _interleave(rows.view(whole), 1).view(rows.dtype)
    n, width = rows.shape
    cells = rows.reshape(n // PANEL, PANEL, width // unit, unit)
    return cells.transpose(1, 2).contiguous().view(n, width)


def _separate(panels: Tensor, unit: int) -> Tensor:
    """What `_interleave` undoes."""
    whole = _WHOLE.get(unit * panels.element_size())
    if whole is not None and whole != panels.dtype and not panels.requires_grad:
        whole_units = panels.contiguous()
        if whole_units.storage_offset() * panels.element_size() % whole.itemsize:
            whole_units = whole_units.clone()
        return _separate(whole_units.view(whole), 1).view(panels.dtype)
    n, width = panels.shape
    cells = panels.reshape(n // PANEL, width // unit, PANEL, unit)
    return cells.transpose(1, 2).contiguous().view(n, width)
