"""`flashvl-bench compare A.json B.json`: what became slower or faster between two runs of `ops`.

Each run timed the kernels and the plain PyTorch expression in turns, and the machine's own speed
moves between runs (20 % within minutes on a shared host). So a case is compared by its time over
the plain expression's of the same round: whatever slows both down cancels. The change of the median
has an interval from a bootstrap over rounds (Efron, Annals of Statistics 7, 1979), widened for the
number of cases (Bonferroni), so that of all intervals together 95 % hold in an unchanged run. What
this cannot see is how a kernel differs from one process to the next with nothing changed: memory
falls elsewhere. Hence a change also has to exceed `least`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from flashvl_bench import report, schema

LEAST = 0.05  # a change below this is not reported, however sure it is
CONFIDENCE = 0.95  # of all intervals together
RESAMPLES = 1000
FEWEST_ROUNDS = 3

SAME_MACHINE = ("cpu", "cores", "threads", "cache_bytes", "cpu_level", "torch")
SAME_SETTINGS = ("quick", "warm", "budget", "allocator_keeps_memory", "device")
SAME_GPU = ("name", "arch", "runtime", "driver")

Key = tuple[str, str, str, str]  # op, sample, dtype, backend asked for


class CompareError(ValueError):
    """Two files that cannot be compared; the text says why."""


@dataclass(frozen=True)
class Change:
    """One case in both runs.

    verdict: "slower", "faster", "same", "broken" (it had a time and has none), "repaired" (the
    other way round), "unmeasured" (neither), "new" or "gone" (in one file only), "too few rounds",
    or "unconfirmed" (by a gate that had no time left to measure it again). ratio: time after over
    time before, 1.1 for 10 % slower; low, high: its interval.
    """

    key: Key
    verdict: str
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    reason: str = ""

    @property
    def bad(self) -> bool:
        return self.verdict in ("slower", "broken", "gone")


def compare(before: dict[str, Any], after: dict[str, Any], least: float = LEAST) -> list[Change]:
    """The change of every case of two validated `flashvl-bench/ops` documents.

    least: the smallest relative change to report. Raises CompareError where the two were measured
    on different machines or in different ways.
    """
    _comparable(before, after)
    rows = [{_key(row): row for row in document["rows"]} for document in (before, after)]
    keys = list(dict.fromkeys([*rows[0], *rows[1]]))
    timed = [k for k in keys if all(k in r and r[k]["status"] == "ok" for r in rows)]
    return [_change(key, rows[0].get(key), rows[1].get(key), len(timed), least) for key in keys]


def _comparable(before: dict[str, Any], after: dict[str, Any]) -> None:
    for document in (before, after):
        if document["schema"] != "flashvl-bench/ops":
            raise CompareError(f"compares results of `ops`, and one is {document['schema']}")
    for part, names in (("machine", SAME_MACHINE), ("settings", SAME_SETTINGS)):
        for name in names:
            a, b = before[part][name], after[part][name]
            if a != b:
                raise CompareError(
                    f"{part} differs in {name}: {a!r} before, {b!r} after. Measure both on one "
                    f"machine, in one way"
                )
    for name in SAME_GPU:
        a, b = ((document["machine"]["gpu"] or {}).get(name) for document in (before, after))
        if a != b:
            raise CompareError(f"the GPU differs in {name}: {a!r} before, {b!r} after")


def _key(row: dict[str, Any]) -> Key:
    return row["op"], row["sample"], row["dtype"], row["asked"]


def _change(
    key: Key, before: dict[str, Any] | None, after: dict[str, Any] | None, cases: int, least: float
) -> Change:
    if before is None or after is None:
        return Change(key, "new" if before is None else "gone")
    had, has = before["status"] == "ok", after["status"] == "ok"
    if not has:
        reason = f"{after['status']}: {after['reason']}"
        return Change(key, "broken" if had else "unmeasured", reason=reason)
    if not had:
        return Change(key, "repaired", reason=f"{before['status']}: {before['reason']}")
    for name in ("launch", "plain_launch"):
        if before[name] != after[name]:
            reason = f"{name} is {before[name]} before, {after[name]} after"
            return Change(key, "unmeasured", reason=reason)
    shares = [_shares(row) for row in (before, after)]
    if min(map(len, shares)) < FEWEST_ROUNDS:
        return Change(key, "too few rounds", reason=f"needs {FEWEST_ROUNDS} in both runs")
    moved, spread = _moved(*shares)
    width = spread * _quantile(1 - (1 - CONFIDENCE) / (2 * cases), min(map(len, shares)) - 1)
    ratio, low, high = (float(np.exp(x)) for x in (moved, moved - width, moved + width))
    verdict = "same"
    if low > 1 and ratio >= 1 + least:
        verdict = "slower"
    elif high < 1 and ratio <= 1 / (1 + least):
        verdict = "faster"
    return Change(key, verdict, ratio, low, high)


def _shares(row: dict[str, Any]) -> np.ndarray:
    """The logarithm of the kernel's time over the plain expression's, a round each."""
    rounds = min(len(row["seconds"]), len(row["plain_seconds"]))
    return np.log(row["seconds"][:rounds]) - np.log(row["plain_seconds"][:rounds])


def _moved(before: np.ndarray, after: np.ndarray) -> tuple[float, float]:
    """The change of the median, and the standard deviation that resampling the rounds gives it."""
    rng = np.random.default_rng(0)
    medians = [
        np.median(x[rng.integers(len(x), size=(RESAMPLES, len(x)))], axis=1)
        for x in (before, after)
    ]
    moved = float(np.median(after) - np.median(before))
    return moved, float(np.std(medians[1] - medians[0]))


def _quantile(share: float, freedom: int) -> float:
    """Of Student's t, for `spread` is an estimate itself (Abramowitz and Stegun 26.7.5)."""
    z = NormalDist().inv_cdf(share)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


CHANGES: report.Columns = (
    ("op", 24), ("sample", 34), ("dtype", 5), ("backend", 7), ("verdict", 14), ("ratio", 20),
)  # fmt: skip


def cells(change: Change) -> list[str]:
    """A row of the table of changes."""
    if change.ratio is None:
        return [*change.key, change.verdict, change.reason]
    return [
        *change.key,
        change.verdict,
        f"{change.ratio:.3f} ({change.low:.3f} to {change.high:.3f})",
    ]


def markdown(changes: list[Change]) -> Iterator[str]:
    """The lines of a summary for a pull request: what changed, and how many did not."""
    shown = [c for c in changes if c.verdict not in ("same", "unmeasured")]
    bad = sum(change.bad for change in changes)
    yield f"**flashvl-bench:** {_count(changes)}; {'**fails**' if bad else 'passes'}."
    if not shown:
        return
    yield ""
    yield "| op | sample | dtype | backend | verdict | time after / before (interval) |"
    yield "|---|---|---|---|---|---|"
    for change in sorted(shown, key=lambda c: (not c.bad, c.key)):
        shown_cells = (cell.replace("|", "\\|").replace("\n", " ") for cell in cells(change))
        yield "| " + " | ".join(shown_cells) + " |"


def _count(changes: list[Change]) -> str:
    verdicts = dict.fromkeys(change.verdict for change in changes)
    counted = ((sum(c.verdict == verdict for c in changes), verdict) for verdict in verdicts)
    return ", ".join(f"{count} {verdict}" for count, verdict in counted) or "no case"


def run(before: str, after: str, least: float = LEAST, summary: str | None = None) -> int:
    """The command line. Exit status 0; 1 if a case is slower, broken or gone; 2 if the files
    cannot be compared."""
    try:
        changes = compare(schema.read(before), schema.read(after), least)
    except (schema.SchemaError, CompareError) as error:
        print(f"flashvl-bench compare: {error}", file=sys.stderr)
        return 2
    table = report.Table(CHANGES)
    for change in changes:
        print(table.row(cells(change)))
    print(f"\n{_count(changes)}; changes below {least:.0%} are not told")
    if summary:
        Path(summary).write_text("\n".join(markdown(changes)) + "\n", encoding="utf-8")
    return 1 if any(change.bad for change in changes) else 0
