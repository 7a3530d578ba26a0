"""Curves of a training run as a picture, from its two plain files.

log.csv has a row a step (stage, step, then what the losses report), progress.csv one for every look
at held-out questions (steps done, then the share that was right in each family).
"""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

SMOOTH = 0.98  # weight of the past in a curve
LOSSES = ("loss", "dense", "point", "lookup")


def add_progress(path: Path, steps: int, shares: dict[str, float]) -> None:
    """Put a row into progress.csv; rows of later steps, which a killed run left, are dropped."""
    rows = [row for row in read(path) if int(row["steps"]) < steps]
    rows.append({"steps": str(steps), **{name: f"{share:.3f}" for name, share in shares.items()}})
    partial = path.with_suffix(".part")
    with partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[-1]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(partial, path)


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file; none where there is no file yet."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def smooth(values: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """An exponential mean along the steps."""
    curve: list[tuple[int, float]] = []
    for step, value in values:
        before = curve[-1][1] if curve else value
        curve.append((step, value + SMOOTH * (before - value)))
    return curve


def draw(folder: Path) -> None:
    """Write curves.png: losses above, exact match on held-out questions below. Needs matplotlib,
    which the printed fonts come with anyway."""
    from matplotlib.figure import Figure

    log = read(folder / "log.csv")
    progress = read(folder / "progress.csv")
    figure = Figure(figsize=(9, 7), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    for name in LOSSES:
        values = [(n, float(row[name])) for n, row in enumerate(log, 1) if row.get(name)]
        if values:
            above.plot(*zip(*smooth(values), strict=True), label=name)
    _stages(above, log)
    above.set_yscale("log")
    above.set_ylabel("loss, smoothed")
    families = [key for key in progress[0] if key != "steps"] if progress else []
    for name in families:
        points = [(int(row["steps"]), 100 * float(row[name])) for row in progress]
        below.plot(*zip(*points, strict=True), marker="o", markersize=3, label=name)
    below.set_ylim(0, 100)
    below.set_ylabel("held-out exact match, %")
    below.set_xlabel("steps")
    for axes, corner in ((above, "upper right"), (below, "upper left")):
        if axes.lines:
            axes.legend(loc=corner)
    partial = folder / "curves.part"
    figure.savefig(partial, format="png", dpi=110, metadata={"Software": None})
    os.replace(partial, folder / "curves.png")


def _stages(axes: Any, log: list[dict[str, str]]) -> None:
    for number, row in enumerate(log):
        if number == 0 or row["stage"] != log[number - 1]["stage"]:
            axes.axvline(number, color="0.8", linewidth=1, zorder=0)
            axes.annotate(row["stage"], (number, 0.02), xycoords=("data", "axes fraction"),
                          fontsize=8, color="0.4")  # fmt: skip
