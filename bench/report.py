"""Text tables: one row a line, printed as soon as it is measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flashvl_bench.model import Row as ModelRow
    from flashvl_bench.ops import Row

Columns = tuple[tuple[str, int], ...]

OPS: Columns = (
    ("op", 24), ("sample", 34), ("dtype", 5), ("backend", 7), ("median", 9), ("+- IQR", 9),
    ("n", 4), ("GB/s", 7), ("GFLOP/s", 8), ("ceiling", 14), ("plain", 9), ("speed-up", 8),
)  # fmt: skip

MODEL: Columns = (
    ("part", 8), ("backend", 8), ("median", 9), ("+- IQR", 9), ("n", 4), ("tok/s", 7),
    ("peer", 9), ("+- IQR", 9), ("ours / peer", 18), ("error (peer's)", 18),
)  # fmt: skip


class Table:
    """Left-aligned first columns as wide as stated; the head comes with the first row."""

    def __init__(self, columns: Columns) -> None:
        self._columns = columns
        self._begun = False

    def row(self, cells: Sequence[str]) -> str:
        """One line (the head above it, the first time). Missing cells at the end stay empty; the
        last cell may be as long as it likes."""
        lines = []
        if not self._begun:
            self._begun = True
            lines.append("  ".join(name.ljust(width) for name, width in self._columns).rstrip())
        shown = [
            _fit(cell, width) if i < len(cells) - 1 else cell
            for i, (cell, (_, width)) in enumerate(zip(cells, self._columns, strict=False))
        ]
        return "\n".join([*lines, "  ".join(shown)])


def _fit(text: str, width: int) -> str:
    return text.ljust(width) if len(text) <= width else text[: width - 1] + "~"


def duration(seconds: float) -> str:
    """Three digits and a unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def cells(row: Row) -> list[str]:
    """A row of the op table; without a time where there is none to show."""
    start = [row.op, row.sample, row.dtype, row.backend or row.asked]
    if row.median is None or row.plain_median is None or row.fraction is None:
        words = {"wrong": "WRONG", "falls back": "falls back", "fails": "FAILS"}[row.status]
        return [*start, f"{words}: {row.reason}"]
    return [
        *start,
        duration(row.median),
        duration(row.iqr or 0.0),
        str(len(row.seconds)),
        f"{(row.bytes_per_second or 0) / 1e9:.3g}",
        f"{(row.flops_per_second or 0) / 1e9:.3g}",
        f"{row.fraction:.0%} {row.bound}",
        duration(row.plain_median),
        f"{row.plain_median / row.median:.2f}x",
    ]


def model_cells(row: ModelRow, bar: float) -> list[str]:
    """A row of the model table."""
    if row.median is None or row.peer_median is None or row.ratio is None:
        word = "WRONG" if row.status == "wrong" else row.status
        return [row.part, row.backend, f"{word}: {row.reason}"]
    speed = "" if row.tokens_per_second is None else f"{row.tokens_per_second:.3g}"
    return [
        row.part,
        row.backend,
        duration(row.median),
        duration(row.iqr or 0.0),
        str(len(row.seconds)),
        speed,
        duration(row.peer_median),
        duration(row.peer_iqr or 0.0),
        f"{row.ratio:.3f}x {'within' if row.ratio <= bar else 'OVER'} {bar}x",
        f"{row.error:.2g} ({row.peer_error:.2g})",
    ]
