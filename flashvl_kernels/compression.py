"""Compression: how a grid of vision tokens becomes fewer tokens, as one value.

Covers what the published models do between encoder and decoder:

    shuffle   space to depth: each factor x factor block becomes one token of factor^2 * C channels.
              order "row_col_channel" is InternVL's pixel shuffle (also SmolVLM, Ovis2, LFM2-VL and
              Qwen2-VL's merge), "channel_row_col" is torch.nn.Unfold's, which DeepSeek-VL2 uses.
              transpose=True gives InternVL's first version, which left out the last permute, so
              that its tokens come column by column. pad=True adds zero rows below and zero columns
              on the right where the grid does not divide (DeepSeek-VL2: 27 -> 28).
    average   mean over each factor x factor block
    adaptive  mean over torch.nn.AdaptiveAvgPool2d's bins, to `out`
    bilinear  torch.nn.functional.interpolate(align_corners=False, antialias=False), to `out`
    none      the tokens as they are

A norm given along with it works on the compressed channels, or with norm_first=True on the C
channels before (Qwen2-VL); the padding zeros are added after that.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

KINDS = ("shuffle", "average", "adaptive", "bilinear", "none")
ORDERS = ("row_col_channel", "channel_row_col")


@dataclass(frozen=True)
class Compression:
    """A compression of a token grid; see the module docstring.

    factor: side of the block of shuffle and average; the other kinds leave it alone.
    out: (height, width) in tokens that adaptive and bilinear make; None for the other kinds.
    transpose: give the tokens column by column; works with every kind.
    Raises ValueError or TypeError naming the field.
    """

    kind: str = "shuffle"
    factor: int = 2
    order: str = "row_col_channel"
    out: tuple[int, int] | None = None
    norm_first: bool = False
    transpose: bool = False
    pad: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(
                f"Compression.kind is {self.kind!r}: it must be one of {', '.join(KINDS)}"
            )
        if self.order not in ORDERS:
            raise ValueError(
                f"Compression.order is {self.order!r}: it must be one of {', '.join(ORDERS)}"
            )
        _check_size("factor", self.factor)
        for name in ("norm_first", "transpose", "pad"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"Compression.{name} is {getattr(self, name)!r}: it must be a bool")
        if self.pad and self.kind != "shuffle":
            raise ValueError(
                f"Compression.pad works with kind 'shuffle', not {self.kind!r}: "
                f"adaptive pooling takes a grid that does not divide"
            )
        self._check_out()

    def _check_out(self) -> None:
        if self.kind not in ("adaptive", "bilinear"):
            if self.out is not None:
                raise ValueError(
                    f"Compression.out is {self.out!r}: kind {self.kind!r} takes none, "
                    f"only adaptive and bilinear do"
                )
            return
        if not isinstance(self.out, (tuple, list)) or len(self.out) != 2:
            raise ValueError(
                f"Compression.out is {self.out!r}: kind {self.kind!r} needs "
                f"(height, width) in tokens"
            )
        for side in self.out:
            _check_size("out", side)
        object.__setattr__(self, "out", tuple(self.out))  # a list, when it comes from JSON

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns that a height x width token grid is compressed to (before transpose)."""
        if self.out is not None:
            return self.out
        if self.kind == "none":
            return height, width
        if self.pad:
            return -(-height // self.factor), -(-width // self.factor)
        if height % self.factor != 0 or width % self.factor != 0:
            hint = "set pad=True" if self.kind == "shuffle" else "use kind='adaptive'"
            raise ValueError(
                f"a grid of {height}x{width} tokens does not divide into blocks of "
                f"{self.factor}x{self.factor}: {hint} or choose another factor"
            )
        return height // self.factor, width // self.factor

    def tokens(self, height: int, width: int) -> int:
        """How many tokens a height x width token grid is compressed to."""
        rows, cols = self.grid(height, width)
        return rows * cols

    def channels(self, channels: int) -> int:
        """How many channels a compressed token has."""
        return channels * self.factor * self.factor if self.kind == "shuffle" else channels

    def flat(self) -> tuple[str, int, str, int, int, bool, bool, bool]:
        """The fields in the order of the torch.library schemas; no `out` is (0, 0)."""
        out = self.out or (0, 0)
        return (self.kind, self.factor, self.order, *out, self.norm_first, self.transpose, self.pad)

    @classmethod
    def from_flat(cls, fields: Iterable[Any]) -> Compression:
        """The compression whose `flat()` is `fields`."""
        kind, factor, order, out_height, out_width, norm_first, transpose, pad = fields
        # One zero alone goes on to the check of `out`, which rejects it.
        out = None if out_height == 0 and out_width == 0 else (out_height, out_width)
        return cls(kind, factor, order, out, norm_first, transpose, pad)


def _check_size(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"Compression.{name} is {value!r}: it must be an int")
    if value < 1:
        raise ValueError(f"Compression.{name} is {value}: it must be at least 1")
