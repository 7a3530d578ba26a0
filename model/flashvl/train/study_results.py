"""The numbers of the stitching study, from its result file alone.

Cases are the unit: with several checkpoints a case counts as the mean of them, so intervals are of
the cases' number and, if anything, too wide. Comparisons are on the same cases wherever that can
be, and are made for each overlap as the mean of its three rules.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from flashvl.train.intervals import Interval, newcombe, paired, wilson, z_of

OVERLAPS = (1, 2, 4)
RULES = ("crop", "mean", "linear")
POOLING = ("pixel shuffle", "average pooling", "bilinear pooling")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a result file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@dataclass(frozen=True)
class Row:
    """A policy over all checkpoints. right, other: of each case the mean of 0s and 1s, None where
    the policy cannot span the picture. on_cut: whether the case lies on a cut of its own."""

    name: str
    axis: str
    tiles: int
    tokens: int
    flops: int
    first_token_s: float
    right: tuple[float | None, ...]
    other: tuple[float | None, ...]
    on_cut: tuple[bool, ...]


@dataclass(frozen=True)
class Comparison:
    """A question and its answer in shares; `among` so many they hold together."""

    key: str
    text: str
    difference: Interval


class Results:
    """The rows and the cases of a result file."""

    def __init__(self, lines: Sequence[dict[str, Any]]) -> None:
        self.about = next(line for line in lines if line["what"] == "study")
        cases = next(line for line in lines if line["what"] == "cases")
        self.family: list[str] = cases["family"]
        self.on_seam = [mark == "1" for mark in cases["on_seam"]]
        self.square = [mark == "1" for mark in cases["square"]]
        found: dict[str, list[dict[str, Any]]] = {}
        for line in lines:
            if line["what"] == "policy":
                found.setdefault(line["policy"], []).append(line)
        self.rows = {name: _row(group) for name, group in found.items()}

    def where(self, keep: Callable[[int], bool]) -> list[int]:
        """Indices of the cases that `keep` is true of."""
        return [index for index in range(len(self.family)) if keep(index)]

    def on(self, seam: bool, square: bool = False) -> list[int]:
        """Cases on a seam of plain tiles, or off; with `square` of square pictures only."""
        return self.where(lambda i: self.on_seam[i] == seam and (self.square[i] or not square))

    def all(self, square: bool = False) -> list[int]:
        return self.where(lambda i: self.square[i] or not square)

    def share(self, row: Row, indices: Iterable[int], other: bool = False) -> Interval:
        """Right answers of a policy among cases, those it cannot span left out (Wilson)."""
        marks = row.other if other else row.right
        seen = [mark for mark in (marks[index] for index in indices) if mark is not None]
        return wilson(sum(seen), len(seen))

    def mean_of(self, names: Sequence[str]) -> list[float | None]:
        """Of each case the mean over policies; None where one of them cannot span it."""
        columns = zip(*(self.rows[name].right for name in names), strict=True)
        return [None if None in column else fmean(column) for column in columns]  # type: ignore[arg-type]

    def compare(
        self, names: Sequence[str], base: Sequence[str], indices: Sequence[int], z: float
    ) -> Interval:
        """Mean of `names` less mean of `base` on the same cases."""
        mine, theirs = self.mean_of(names), self.mean_of(base)
        pairs = ((mine[index], theirs[index]) for index in indices)
        return paired([a - b for a, b in pairs if a is not None and b is not None], z)


def _row(lines: Sequence[dict[str, Any]]) -> Row:
    first = lines[0]
    times = [seconds for line in lines for seconds in line["first_token_s"]]

    def means(key: str) -> tuple[float | None, ...]:
        columns = zip(*(line[key] for line in lines), strict=True)
        return tuple(None if "-" in column else fmean(map(int, column)) for column in columns)

    return Row(
        first["policy"], first["axis"], first["tiles"], first["tokens"],
        first["image_flops"] + first["prefill_flops"], median(times) if times else 0.0,
        means("right"), means("other_picture"), tuple(m == "1" for m in first["on_own_cut"]),
    )  # fmt: skip


def overlapping(overlap: int, unscaled: bool = False) -> list[str]:
    """The names of an overlap's policies, one a rule."""
    return [f"overlap {overlap} {rule}{', 9 tiles' if unscaled else ''}" for rule in RULES]


def comparisons(results: Results) -> list[Comparison]:
    """The questions that were settled before any number was seen, each interval so wide that all
    of them hold together at 95 % (Bonferroni)."""
    plain, flat = ["plain tiles"], ["overlap 0 crop"]
    everything, seams = results.all(), {True: results.on(True), False: results.on(False)}
    square = {seam: results.on(seam, square=True) for seam in (True, False)}
    word = {True: "on", False: "off"}
    asked: list[tuple[str, str, Callable[[float], Interval]]] = []

    def ask(key: str, text: str, names: list[str], base: list[str], cases: list[int]) -> None:
        asked.append((key, text, lambda z: results.compare(names, base, cases, z)))

    asked.append(("seam", "plain tiles: cases on a seam less cases off it", lambda z: _apart(
        results, "plain tiles", seams, z)))  # fmt: skip
    ask("tiles", "plain tiles less one tile", plain, ["one tile"], everything)
    ask("order", "tokens in rows of the canvas less tile by tile", flat, plain, everything)
    for overlap in OVERLAPS:
        for seam in (True, False):
            ask(f"equal tiles {overlap} {word[seam]}",
                f"overlap {overlap} less overlap 0, four tiles each, {word[seam]} the seams",
                overlapping(overlap), flat, seams[seam])  # fmt: skip
    for overlap in OVERLAPS:
        for seam in (True, False):
            ask(f"equal resolution {overlap} {word[seam]}",
                f"overlap {overlap}, nine tiles, less overlap 0, equal resolution and tokens, "
                f"{word[seam]} the seams",
                overlapping(overlap, True), flat, square[seam])  # fmt: skip
    for rule in RULES[1:]:
        ask(f"rule {rule}", f"{rule} less crop, four tiles, on the seams",
            [f"overlap {overlap} {rule}" for overlap in OVERLAPS],
            [f"overlap {overlap} crop" for overlap in OVERLAPS], seams[True])  # fmt: skip
    for kind in POOLING:
        ask(f"pooling {kind}", f"{kind} less adaptive pooling, equal tokens",
            [kind], ["adaptive pooling"], everything)  # fmt: skip
    z = z_of(among=len(asked))
    return [Comparison(key, text, answer(z)) for key, text, answer in asked]


def _apart(results: Results, name: str, seams: dict[bool, list[int]], z: float) -> Interval:
    right = results.rows[name].right
    on, off = ([right[i] or 0.0 for i in seams[seam]] for seam in (True, False))
    return newcombe(sum(on), len(on), sum(off), len(off), z)


def front(results: Results) -> list[Row]:
    """The policies that no other beats in right answers on square pictures at as few FLOPs or
    fewer, cheapest first."""
    square = results.all(square=True)
    best = -1.0
    kept = []
    rows = results.rows.values()
    shares = {row.name: results.share(row, square).value for row in rows}
    for row in sorted(rows, key=lambda row: (row.flops, -shares[row.name])):
        if shares[row.name] > best:
            kept.append(row)
            best = shares[row.name]
    return kept
