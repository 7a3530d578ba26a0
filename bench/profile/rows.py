"""The rows of a profile: where the seconds of one answer are, and how near ops are to the ceiling.

Every second of the answer is in one row: in an op call, in a stage outside of its ops (Python,
PyTorch's own functions, the tokeniser), between the stages, or in the recorder. So the rows add up
to the answer's time, which a clock around the whole call measures on its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from flashvl_bench import report
from flashvl_bench.ceilings import Ceilings
from flashvl_bench.profile.record import ROOT, Recorder

OUTSIDE = "outside of ops"
RECORDER = "recording"

TABLE: report.Columns = (
    ("where", 22), ("op", 22), ("shape", 40), ("dtype", 5), ("backend", 7), ("calls", 5),
    ("time", 9), ("share", 6), ("MB", 8), ("MFLOP", 9), ("GB/s", 7), ("GFLOP/s", 8),
    ("ceiling", 12),
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """All calls of one op on one shape in one stage; or, without a backend, what a stage spends
    outside of ops. bytes and flops: what had to move and be done, of all calls together. fraction:
    the least time the ceilings allow for them over `seconds`; bound: what sets it."""

    where: str
    op: str
    shape: str = ""
    dtype: str = ""
    backend: str = ""
    kernel: str = ""
    calls: int = 0
    seconds: float = 0.0
    bytes_read: int = 0
    bytes_written: int = 0
    flops: int = 0
    fraction: float | None = None
    bound: str = ""


@dataclass
class _Sum:
    calls: int = 0
    seconds: float = 0.0
    bytes_read: int = 0
    bytes_written: int = 0
    flops: int = 0
    memory: float = 0.0  # least seconds of calls that memory bounds
    compute: float = 0.0


def rows(recorder: Recorder, top: Ceilings | None) -> list[Row]:
    """The rows of what was recorded, the longest first. top: None where no ceiling is known."""
    ops: dict[tuple[str, ...], _Sum] = {}
    outside: dict[str, _Sum] = {}
    for span, own in zip(recorder.spans, recorder.own_seconds(), strict=True):
        where = recorder.stage_of(span)
        if span.call is None:
            total = outside.setdefault(where, _Sum())
            total.calls, total.seconds = total.calls + 1, total.seconds + own
            continue
        call = span.call
        key = (where, call.op, call.shape, call.dtype, call.backend, call.kernel)
        total = ops.setdefault(key, _Sum())
        total.calls, total.seconds = total.calls + 1, total.seconds + own
        total.bytes_read += call.cost.bytes_read
        total.bytes_written += call.cost.bytes_written
        total.flops += call.cost.flops
        if top is not None:
            least, bound = top.least_time(call.cost, call.dtype)
            setattr(total, bound, getattr(total, bound) + least)
    found = [Row(*key, **_figures(total, top is not None)) for key, total in ops.items()]
    found += [
        Row(where, OUTSIDE, calls=total.calls, seconds=total.seconds)
        for where, total in outside.items()
    ]
    found.append(Row(ROOT, RECORDER, seconds=sum(span.recorder for span in recorder.spans)))
    return sorted(found, key=lambda row: -row.seconds)


def _figures(total: _Sum, known: bool) -> dict[str, float | int | str | None]:
    fraction = (total.memory + total.compute) / total.seconds if known and total.seconds else None
    bound = "memory" if total.memory >= total.compute else "compute"
    return {
        "calls": total.calls,
        "seconds": total.seconds,
        "bytes_read": total.bytes_read,
        "bytes_written": total.bytes_written,
        "flops": total.flops,
        "fraction": fraction,
        "bound": bound if known else "",
    }


def share_outside(found: Iterable[Row]) -> float:
    """The share of the time that is in no op; without the recorder's own."""
    kept = [row for row in found if row.op != RECORDER]
    total = sum(row.seconds for row in kept)
    return sum(row.seconds for row in kept if row.op == OUTSIDE) / total if total else 0.0


def lines(found: Sequence[Row], wall: float) -> Iterable[str]:
    """The table; the last line adds the rows up."""
    table = report.Table(TABLE)
    for row in found:
        yield table.row(_cells(row, wall))
    total = sum(row.seconds for row in found)
    yield (
        f"{len(found)} rows, together {report.duration(total)}: {total / wall:.1%} of the "
        f"{report.duration(wall)} that the answer took; {share_outside(found):.0%} outside of ops"
    )


def _cells(row: Row, wall: float) -> list[str]:
    start = [row.where, row.op, row.shape, row.dtype, row.backend, str(row.calls or "")]
    start += [report.duration(row.seconds), f"{row.seconds / wall:.1%}"]
    if not row.backend or not row.seconds:
        return start
    moved = row.bytes_read + row.bytes_written
    ceiling = "" if row.fraction is None else f"{row.fraction:.0%} {row.bound}"
    return [
        *start,
        f"{moved / 1e6:.3g}",
        f"{row.flops / 1e6:.4g}",
        f"{moved / row.seconds / 1e9:.3g}",
        f"{row.flops / row.seconds / 1e9:.4g}",
        ceiling,
    ]
