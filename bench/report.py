"""Text tables: one row a line, printed as soon as it is measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flashvl_bench.ops import Row
    from flashvl_bench.rows import Row as ModelRow

Columns = tuple[tuple[str, int], ...]

OPS: Columns = (
    ("op", 24), ("sample", 34), ("dtype", 5), ("backend", 7), ("median", 9), ("+- IQR", 9),
    ("n", 4), ("GB/s", 7), ("GFLOP/s", 8), ("ceiling", 14), ("plain", 9), ("speed-up", 8),
)  # fmt: skip

OPS_ON_GPU: Columns = (
    *((name, 13 if name == "backend" else width) for name, width in OPS),
    ("launch", 20),
)

MODEL: Columns = (
    ("part", 8), ("weights", 7), ("side", 14), ("median", 9), ("+- IQR", 9), ("n", 4),
    ("tok/s", 7), ("GB/s", 7), ("GFLOP/s", 8), ("ceiling", 12), ("ours is", 8),
    ("error (peer's)", 18),
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
    shown = [
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
    return [*shown, launch(row.launch, row.plain_launch)] if row.launch else shown


def launch(own: str, plain: str) -> str:
    """How a kernel was launched on a GPU, and the plain expression beside it where otherwise."""
    return own if own == plain else f"{own} (plain: {plain})"


def model_cells(row: ModelRow) -> list[list[str]]:
    """The lines of a row of the model table: ours, and one for each peer."""
    start = [row.part, row.weights]
    lines = [[*start, f"ours {row.backend}", *_own(row)]]
    for peer in row.peers:
        if peer.median is None or peer.speedup is None:
            lines.append([*start, peer.name, f"{peer.status}: {peer.reason}"])
            continue
        figures = [duration(peer.median), duration(peer.iqr or 0.0), str(len(peer.seconds))]
        ours = f"{peer.speedup:.2f}x"
        lines.append([*start, peer.name, *figures, "", "", "", "", ours])
    return lines


def _own(row: ModelRow) -> list[str]:
    if row.median is None or row.fraction is None:
        return [f"{'WRONG' if row.status == 'wrong' else row.status}: {row.reason}"]
    from flashvl_bench.rows import COSINE_BARS as bars

    bytes_moved = row.bytes_read + row.bytes_written
    error = "" if row.cosine is None else f"cosine {row.cosine:.5f}, bar {bars[row.weights]}"
    if row.cosine is None and row.error is not None and row.peer_error is not None:
        error = f"{row.error:.2g} ({row.peer_error:.2g})"
    return [
        duration(row.median),
        duration(row.iqr or 0.0),
        str(len(row.seconds)),
        "" if row.tokens_per_second is None else f"{row.tokens_per_second:.1f}",
        f"{bytes_moved / row.median / 1e9:.3g}",
        f"{row.flops / row.median / 1e9:.4g}",
        f"{row.fraction:.0%} {row.bound}",
        "",
        error,
    ]


def batch_line(rows: Sequence[ModelRow]) -> str:
    """How many times the tokens per second of one sequence eight of them make, per format."""
    rates = {(row.part, row.weights): row.tokens_per_second for row in rows}
    found = []
    for row in rows:
        one, eight = rates.get(("decode", row.weights)), row.tokens_per_second
        if row.part == "decode8" and one and eight:
            found.append(f"{row.weights} {eight / one:.2f}x")
    return f"batch 8 over batch 1, tokens per second: {', '.join(found)}" if found else ""
