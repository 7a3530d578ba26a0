"""docs/stitching.md and its two plots, from the result file of the study alone.

The sentences of the conclusion are chosen by the numbers: a difference is called one only where
its interval lies on one side of zero, and where it does not the page says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from flashvl.train.intervals import Interval
from flashvl.train.study_results import (
    OVERLAPS,
    POOLING,
    Comparison,
    Results,
    Row,
    comparisons,
    front,
    read_lines,
)

SEAMS, COSTS = "stitching-seams.svg", "stitching-cost.svg"
SVG_SALT = "stitching"  # matplotlib's ids come from it: the same file on every run
AXES = {"one tile": "#6e7781", "plain": "#1f2328", "overlap": "#0969da", "resolution": "#8250df",
        "compression": "#bf8700"}  # fmt: skip


def write(results: Path, page: Path) -> None:
    """The page, and its plots beside it."""
    found = Results(read_lines(results))
    page.parent.mkdir(parents=True, exist_ok=True)
    _plot_seams(found, page.with_name(SEAMS))
    _plot_costs(found, page.with_name(COSTS))
    page.write_text(text(found), encoding="utf-8")


def text(results: Results) -> str:
    """The page as Markdown."""
    answers = {answer.key: answer for answer in comparisons(results)}
    parts = [
        HEAD.format(**_setup(results)),
        "## What was found\n\n" + "\n".join(f"- {line}" for line in conclusion(results, answers)),
        f"![right answers on and off the seams]({SEAMS})",
        f"![right answers against FLOPs]({COSTS})",
        "## All pictures\n\n" + "\n".join(_table(results)),
        "## Square pictures: equal resolution beside equal tiles\n\n" + "\n".join(_square(results)),
        "## By what was asked\n\n" + "\n".join(_families(results)),
        "## The comparisons\n\n" + "\n".join(_compared(list(answers.values()))),
        LIMITS,
    ]
    return "\n\n".join(parts) + "\n"


HEAD = """# What stitching and compression buy

Written by `python -m flashvl.train.study` from its result file; change neither by hand.

The tiny model ({checkpoints}) was trained under a random mix of all policies
(`flashvl.train.tiles`) and is asked {cases} held-out questions under each: printed words and
numbers, handwriting, and drawn scenes, half of them about something that a cut of plain 64-px tiles
goes through by at least a tenth ("on a seam"), half about something that no cut touches. Shares of
right answers are exact matches, with Wilson's 95 % intervals. The blind guess, which gives every
kind of question its most frequent answer, is right in {blind:.1f} %; the column "other picture" is
the control in which every question comes with another case's picture. Tokens and FLOPs are those of
a square picture (128x128 px) and a question; the time to the first token is the median on {cpu},
{threads} threads, one picture at a time."""

LIMITS = """## What this does not say

- One small model (2.4 M parameters) on drawn pictures, with tiles of 8x8 patches: an overlap of 1
  is the 12.5 % said of the paper. Large models may bridge a cut by themselves, or not.
- Each policy is a share of one training mix; a model trained under one policy alone may do better.
  Encoder and decoder began as those of `flashvl.train.tiny`, trained at overlap 2, linear; in the
  last two stages two batches in five were of the policy that is shipped, overlap 4 linear, 9 tiles.
- To half of an even canvas adaptive, average and bilinear pooling all take the mean of 2x2 patches:
  their rows differ by rounding alone. Only pixel shuffle is another function, with an adapter input
  of its own that had a quarter of the training.
- An interval that holds zero is no proof of no difference: one as large as its ends would have gone
  unseen."""


def _setup(results: Results) -> dict[str, object]:
    names = results.about["checkpoints"]
    several = f"{len(names)} checkpoints of different seeds, averaged"
    return {
        **results.about,
        "checkpoints": several if len(names) > 1 else "one checkpoint",
        "blind": 100 * results.about["blind"],
    }


def percent(found: Interval) -> str:
    """A share with its interval."""
    return f"{100 * found.value:.1f} ({100 * found.low:.1f}-{100 * found.high:.1f})"


def points(found: Interval) -> str:
    """A difference with its interval."""
    return f"{100 * found.value:+.1f} points ({100 * found.low:+.1f} to {100 * found.high:+.1f})"


def _costs(row: Row) -> str:
    return f"{row.tiles} | {row.tokens} | {row.flops / 1e6:.0f} | {1000 * row.first_token_s:.2f}"


def _table(results: Results) -> Iterator[str]:
    yield "Half-overlapping tiles hold wide pictures unscaled too: nine are three there.\n"
    yield "| policy | tiles | tokens | MFLOPs | first token ms | on a seam % | off % | all % | other picture % |"  # noqa: E501
    yield "|---|---|---|---|---|---|---|---|---|"
    for row in results.rows.values():
        if None in row.right:
            continue
        on, off, everything = (
            percent(results.share(row, cases))
            for cases in (results.on(True), results.on(False), results.all())
        )
        other = 100 * results.share(row, results.all(), other=True).value
        yield f"| {row.name} | {_costs(row)} | {on} | {off} | {everything} | {other:.1f} |"


def _square(results: Results) -> Iterator[str]:
    count = len(results.all(square=True))
    yield (
        f"{count} cases. On a seam means that of plain tiles here too, so that a row's cases are "
        "the same as the next row's; the last column is of the cases that lie on a cut of the "
        "policy's own grid.\n"
    )
    yield "| policy | tiles | tokens | MFLOPs | on a seam % | off % | on its own cuts % |"
    yield "|---|---|---|---|---|---|---|"
    for row in results.rows.values():
        if row.axis == "compression":
            continue
        own = results.where(lambda i, row=row: results.square[i] and row.on_cut[i])  # type: ignore[misc]
        on, off = (percent(results.share(row, results.on(s, square=True))) for s in (True, False))
        mine = percent(results.share(row, own)) if own else "no cuts"
        spent = f"{row.tiles} | {row.tokens} | {row.flops / 1e6:.0f}"
        yield f"| {row.name} | {spent} | {on} | {off} | {mine} |"


def _families(results: Results) -> Iterator[str]:
    families = list(dict.fromkeys(results.family))
    yield "| policy | " + " | ".join(f"{family} %" for family in families) + " |"
    yield "|---" * (1 + len(families)) + "|"
    for row in results.rows.values():
        if None in row.right:
            continue
        cells = [
            percent(results.share(row, results.where(lambda i, f=family: results.family[i] == f)))  # type: ignore[misc]
            for family in families
        ]
        yield f"| {row.name} | " + " | ".join(cells) + " |"


def _compared(answers: Sequence[Comparison]) -> Iterator[str]:
    yield (
        f"Settled before any number was seen. The {len(answers)} intervals hold together at 95 % "
        "(Bonferroni); differences on the same cases are Agresti and Min's, that between cases on "
        "and off the seams is Newcombe's. An overlap is the mean of its three rules.\n"
    )
    yield "| difference | points | interval |"
    yield "|---|---|---|"
    for answer in answers:
        value, low, high = (100 * bound for bound in answer.difference)
        yield f"| {answer.text} | {value:+.1f} | {low:+.1f} to {high:+.1f} |"


def conclusion(results: Results, answers: dict[str, Comparison]) -> list[str]:
    """What the numbers say, a sentence a question."""
    found = {key: answer.difference for key, answer in answers.items()}
    return [
        _seam_sentence(found["seam"]),
        _pick(found["tiles"], "Tiles pay: four plain tiles read {} more than one downscaled tile.",
              "Tiles do not pay here: four plain tiles read {} against one downscaled tile.",
              "Whether four plain tiles read more than one downscaled tile cannot be told: {}."),
        _pick(found["order"],
              "Merely putting the tokens of plain tiles in the order of the canvas helps: {}.",
              "Merely putting the tokens of plain tiles in the order of the canvas hurts: {}.",
              "The order of the tokens, by canvas or by tile, makes no difference that can be "
              "told: {}."),
        *(_overlap_sentence(overlap, found) for overlap in OVERLAPS),
        _verdict(found),
        *(_pick(found[f"rule {rule}"], f"On the seams `{rule}` is better than `crop`: {{}}.",
                f"On the seams `{rule}` is worse than `crop`: {{}}.",
                f"Between `{rule}` and `crop` no difference on the seams can be told: {{}}.")
          for rule in ("mean", "linear")),
        *(_pick(found[f"pooling {kind}"],
                f"At equal tokens {kind} is better than adaptive pooling: {{}}.",
                f"At equal tokens {kind} is worse than adaptive pooling: {{}}.",
                f"At equal tokens {kind} and adaptive pooling cannot be told apart: {{}}.")
          for kind in POOLING),
        "On square pictures nothing as cheap is right more often than: "
        + "; ".join(
            f"{row.name} ({row.flops / 1e6:.0f} MFLOPs, "
            f"{100 * results.share(row, results.all(square=True)).value:.1f} %)"
            for row in front(results)
        ) + ".",
    ]  # fmt: skip


def _pick(found: Interval, above: str, below: str, unclear: str) -> str:
    return {1: above, -1: below, 0: unclear}[found.sign].format(points(found))


def _seam_sentence(found: Interval) -> str:
    return _pick(
        found,
        "Under plain tiles what lies on a seam is read better than what does not, {}: the seams "
        "are not what costs here, and the two sets of cases differ otherwise.",
        "Seams cost: under plain tiles what lies on one is read worse than what does not: {}.",
        "Under plain tiles no cost of a seam can be told: on a seam less off it, {}.",
    )


def _overlap_sentence(overlap: int, found: dict[str, Interval]) -> str:
    kinds = ("equal tiles", "equal resolution")
    tiles, full = ({side: found[f"{kind} {overlap} {side}"] for side in ("on", "off")}
                   for kind in kinds)  # fmt: skip
    return (
        f"An overlap of {overlap} with four tiles: {_change(tiles['on'])} on the seams, "
        f"{_change(tiles['off'])} off them. At the resolution of plain tiles, with nine: "
        f"{_change(full['on'])} on the seams, {_change(full['off'])} off them."
    )


def _change(found: Interval) -> str:
    word = {1: "better", -1: "worse", 0: "no difference that can be told"}[found.sign]
    return f"{word}, {points(found)}"


def _verdict(found: dict[str, Interval]) -> str:
    """Whether stitching helps here: some overlap gains on the seams, and what it loses off them."""
    gains = {
        kind: [o for o in OVERLAPS if found[f"{kind} {o} on"].sign > 0]
        for kind in ("equal tiles", "equal resolution")
    }
    losses = [o for o in gains["equal tiles"] if found[f"equal tiles {o} off"].sign < 0]
    if not gains["equal tiles"] and not gains["equal resolution"]:
        hurt = any(found[f"equal tiles {o} on"].sign < 0 for o in OVERLAPS)
        more = " With as many tiles it even costs there." if hurt else ""
        return f"**Stitching overlapping tiles does not help here on the seams.**{more}"
    if not gains["equal tiles"]:
        return (
            "**Stitching helps on the seams only where more tiles keep the resolution** "
            f"(overlap {_list(gains['equal resolution'])}): overlap repairs what a cut breaks, but "
            "the same tiles spread over less of the picture give nothing back."
        )
    where = f"overlap {_list(gains['equal tiles'])}"
    if losses:
        return (
            f"**Stitching helps on the seams ({where}) and costs off them** "
            f"(overlap {_list(losses)}): whether it pays depends on how much lies on seams."
        )
    return f"**Stitching helps on the seams ({where}), and no loss off them can be told.**"


def _list(overlaps: Sequence[int]) -> str:
    return " and ".join(map(str, overlaps))


def _plot_seams(results: Results, path: Path) -> None:
    from matplotlib.figure import Figure

    rows = list(results.rows.values())
    figure = Figure(figsize=(9, 0.3 * len(rows) + 1.2), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(rows):
        for seam, marker, lift in ((True, "o", 0.15), (False, "s", -0.15)):
            found = results.share(row, results.on(seam, square=True))
            value, low, high = (100 * bound for bound in found)
            axes.errorbar(
                value, place + lift, xerr=[[max(0, value - low)], [max(0, high - value)]],
                fmt=marker, markersize=4, color=AXES[row.axis], alpha=1.0 if seam else 0.45,
                label={True: "on a seam", False: "off"}[seam] if place == 0 else None,
            )  # fmt: skip
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("right, % of square pictures, with 95 % intervals (Wilson)")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(loc="best")
    _save(figure, path)


def _plot_costs(results: Results, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    square = results.all(square=True)
    shown = set()
    for row in results.rows.values():
        value = 100 * results.share(row, square).value
        label = row.axis if row.axis not in shown else None
        shown.add(row.axis)
        axes.plot(row.flops / 1e6, value, "o", color=AXES[row.axis], label=label)
    best = [(row.flops / 1e6, 100 * results.share(row, square).value) for row in front(results)]
    axes.plot(*zip(*best, strict=True), color="0.7", linewidth=1, zorder=0, drawstyle="steps-post")
    for row, (x, y) in zip(front(results), best, strict=True):
        axes.annotate(row.name, (x, y), xytext=(4, 4), textcoords="offset points", fontsize=8)
    axes.set_xlabel("MFLOPs of a square picture and a question")
    axes.set_ylabel("right, % of square pictures")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    _save(figure, path)


def _save(figure: object, path: Path) -> None:
    from matplotlib import rc_context

    with rc_context({"svg.hashsalt": SVG_SALT, "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None, "Creator": None})  # type: ignore[attr-defined]
