"""The charts of a report, as SVG written here: the roofline, and each op's distance to its ceiling.

Two colours: one for our kernels, grey for the plain PyTorch expression beside them. Axes have
units, points are labelled where there is room, and every point tells its case when pointed at. The
same drawing stands alone as a file (a README's picture) with its colours inside.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import product
from typing import Any

from flashvl_bench.ceilings import LOOPS, Ceilings
from flashvl_bench.page.data import Document, middle, plain_fraction, quantity, timed
from flashvl_bench.report import duration

WIDTH, HEIGHT = 420, 350
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 16, 40
LETTER = 6.0  # px of a letter at 10 px, about

STYLE = """
.chart { font: 10px system-ui, sans-serif; }
.chart text { fill: var(--ink); }
.chart .faint, .chart .tick { fill: var(--faint); }
.chart .axis { stroke: var(--faint); stroke-width: 1; }
.chart .grid { stroke: var(--grid); stroke-width: 1; }
.chart .roof { stroke: var(--ink); stroke-width: 1.5; fill: none; }
.chart .ours { fill: var(--accent); stroke: var(--ground); stroke-width: 1; }
.chart .plain { fill: var(--ground); stroke: var(--plain); stroke-width: 1.5; }
.chart .lead { stroke: var(--ink); stroke-width: 0.7; }
.chart .gain { stroke: var(--plain); stroke-width: 1; opacity: 0.6; }
.chart .value { fill: var(--accent-ink); font-weight: 600; }
.chart .head { font-size: 12px; font-weight: 600; }
"""
LIGHT = (
    "--ground: #ffffff; --ink: #1f2328; --faint: #59636e; --grid: #e6e9ed; --plain: #8c959f; "
    "--accent: #0969da; --accent-ink: #0757b3; --panel: #f6f8fa; --line: #d1d9e0; --bad: #b3261e;"
)
DARK = (
    "--ground: #0d1117; --ink: #e6edf3; --faint: #9198a1; --grid: #21262d; --plain: #7d8590; "
    "--accent: #4493f8; --accent-ink: #79b8ff; --panel: #151b23; --line: #3d444d; --bad: #ff8f87;"
)


def alone(parts: Sequence[tuple[str, int, int]], title: str) -> str:
    """One SVG file of several drawings (body, width, height) side by side, with its colours."""
    width, height = sum(w for _, w, _ in parts) + 24, max(h for _, _, h in parts) + 24
    placed, left = [], 12
    for body, w, _ in parts:
        placed.append(f'<g transform="translate({left} 12)">{body}</g>')
        left += w
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img" aria-label="{escape(title)}"><style>'
        f"svg {{ {LIGHT} background: var(--ground); }} @media (prefers-color-scheme: dark) {{ "
        f"svg {{ {DARK} }} }} {STYLE}</style>{''.join(placed)}</svg>\n"
    )


def inline(body: str, width: int, height: int, title: str) -> str:
    """The drawing as an element of a page."""
    return (
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(title)}">{body}</svg>'
    )


# ---- distance to the ceiling -------------------------------------------------------------------

NAMES, VALUES, ROW = 128, 44, 20


def distance(document: Document, dtype: str) -> tuple[str, int, int]:
    """A row an op, sorted by name: a point for each sample's fraction of the ceiling, ours and the
    plain expression's, and the median of ours in figures."""
    rows = timed(document, dtype)
    ops = sorted({row["op"] for row in rows})
    most = max([1.0, *(row["fraction"] for row in rows)])
    end = math.ceil(min(most, 2.0) * 4) / 4
    height = 40 + ROW * len(ops) + 34
    left, right = NAMES, WIDTH - VALUES
    scale = (right - left) / end

    def x(fraction: float) -> float:
        return left + min(fraction, end) * scale

    parts = [f'<text class="head" x="0" y="12">{dtype}</text>']
    parts.append(
        f'<circle class="ours" cx="{left + 5}" cy="8" r="4"/><text x="{left + 14}" y="12">kernel'
        f'</text><circle class="plain" cx="{left + 66}" cy="8" r="3.5"/>'
        f'<text x="{left + 75}" y="12">plain PyTorch</text>'
        f'<text class="faint" x="{WIDTH}" y="12" text-anchor="end">median</text>'
    )
    bottom = 30 + ROW * len(ops)
    for quarter in range(int(end * 4) + 1):
        at, share = x(quarter / 4), quarter * 25
        kind = "axis" if share == 100 else "grid"
        parts.append(f'<line class="{kind}" x1="{at:.1f}" y1="26" x2="{at:.1f}" y2="{bottom}"/>')
        parts.append(
            f'<text class="tick" x="{at:.1f}" y="{bottom + 13}" text-anchor="middle">{share}</text>'
        )
    parts.append(
        f'<text class="faint" x="{x(end / 2):.1f}" y="{bottom + 28}" text-anchor="middle">'
        f"% of the speed this machine can reach at most</text>"
    )
    for i, op in enumerate(ops):
        y = 30 + ROW * i + ROW / 2
        own = [row for row in rows if row["op"] == op]
        parts.append(
            f'<text x="{left - 10}" y="{y + 3.5}" text-anchor="end">{escape(_short(op, 21))}</text>'
        )
        for row in own:
            at = x(plain_fraction(row))
            parts.append(
                f'<circle class="plain" cx="{at:.1f}" cy="{y}" r="3.5">{_told(row)}</circle>'
            )
        for row in own:
            at = x(row["fraction"])
            parts.append(f'<circle class="ours" cx="{at:.1f}" cy="{y}" r="4">{_told(row)}</circle>')
        value = middle(row["fraction"] for row in own)
        parts.append(
            f'<text class="value" x="{WIDTH}" y="{y + 3.5}" text-anchor="end">{value:.0%}</text>'
        )
    return "".join(parts), WIDTH, height


def _told(row: dict[str, Any]) -> str:
    """What a point says when pointed at."""
    text = (
        f"{row['op']} [{row['sample']}] {row['dtype']}, {row['kernel']}: "
        f"{duration(row['median'])}, "
        f"{row['fraction']:.0%} of the {row['bound']} ceiling; plain PyTorch "
        f"{duration(row['plain_median'])}, {plain_fraction(row):.0%}"
    )
    return f"<title>{escape(text)}</title>"


def _short(text: str, letters: int) -> str:
    return text if len(text) <= letters else f"{text[: letters - 1]}…"


# ---- roofline ----------------------------------------------------------------------------------


@dataclass
class _Scale:
    """A logarithmic axis from value `low` at pixel `start` to `high` at `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + min(max(share, 0.0), 1.0) * (self.end - self.start)

    def decades(self) -> list[float]:
        first, last = math.ceil(math.log10(self.low) - 1e-9), math.log10(self.high) + 1e-9
        return [10.0**power for power in range(first, math.floor(last) + 1)]


REACH = (5.0, 16.0, 28.0, 42.0, 58.0, 76.0, 96.0)
DIRECTIONS = ((1.0, 0.0), (-1.0, 0.0), (0.75, 0.65), (-0.75, -0.65), (0.0, 1.0), (0.75, -0.65),
              (-0.75, 0.65), (0.0, -1.0))  # fmt: skip


@dataclass
class _Labels:
    """Texts that keep out of each other's way."""

    taken: list[tuple[float, float, float, float]] = field(default_factory=list)

    def place(self, text: str, x: float, y: float) -> str:
        """Beside (x, y) where there is room, else nothing."""
        wide = LETTER * len(text)
        for far, (right, down) in product(REACH, DIRECTIONS):
            end = x + right * far, y + down * far  # of the line that leads to the text
            left = end[0] + (3 if right > 0 else -wide - 3 if right < 0 else -wide / 2)
            base = end[1] + 3.5 + 6 * down
            box = (left - 1, base - 9, left + wide + 1, base + 2)
            inside = box[0] > LEFT and box[2] < WIDTH - RIGHT and box[1] > TOP
            inside = inside and box[3] < HEIGHT - BOTTOM - 2
            if not inside or any(_overlap(box, other) for other in self.taken):
                continue
            self.taken.append(box)
            lead = (
                f'<line class="lead" x1="{x:.1f}" y1="{y:.1f}" x2="{end[0]:.1f}" '
                f'y2="{end[1]:.1f}"/>'
            )
            word = f'<text x="{left:.1f}" y="{base:.1f}">{escape(text)}</text>'
            return (lead if far > REACH[0] else "") + word
        return ""

    def keep_clear(self, x: float, y: float, radius: float = 4.5) -> None:
        self.taken.append((x - radius, y - radius, x + radius, y + radius))


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def roofline(document: Document, dtype: str) -> tuple[str, int, int]:
    """FLOP/s over FLOPs a byte, both logarithmic: the roofs of this machine, and each case of ours
    above (or below) the plain expression. Cases without arithmetic have no place here."""
    top = Ceilings(**document["ceilings"])
    rows = [row for row in timed(document, dtype) if row["flops"]]
    bandwidth, peak = max(top.read, top.copy), top.compute(dtype)
    points = [(_intensity(row), row["flops"] / row["median"] / 1e9, row) for row in rows]
    plain = [row["flops"] / row["plain_median"] / 1e9 for row in rows]
    rates = [rate for _, rate, _ in points] + plain
    corner = peak / bandwidth
    x = _Scale(
        min([0.1, *(at for at, _, _ in points)]) / 1.5,
        max([corner * 4, *(at for at, _, _ in points)]) * 1.5,
        LEFT,
        WIDTH - RIGHT,
    )
    y = _Scale(min([1.0, *rates]) / 2, max([peak / 1e9, *rates]) * 2.5, HEIGHT - BOTTOM, TOP)
    parts = _axes(x, y, dtype)
    start = (x.low, x.low * bandwidth / 1e9)
    parts.append(
        f'<path class="roof" d="M{x(start[0]):.1f} {y(max(start[1], y.low)):.1f} '
        f'L{x(corner):.1f} {y(peak / 1e9):.1f} L{x(x.high):.1f} {y(peak / 1e9):.1f}"/>'
    )
    labels = _Labels()
    parts += _roof_labels(x, y, top, dtype, labels)
    for step in range(61):  # along the slope
        at = x.low * (corner / x.low) ** (step / 60)
        labels.keep_clear(x(at), y(max(at * bandwidth / 1e9, y.low)), 2)
    for (at, rate, row), other in zip(points, plain, strict=True):
        labels.keep_clear(x(at), y(other), 4)
        parts.append(
            f'<line class="gain" x1="{x(at):.1f}" y1="{y(other):.1f}" x2="{x(at):.1f}" '
            f'y2="{y(rate):.1f}"/>'
        )
        parts.append(
            f'<circle class="plain" cx="{x(at):.1f}" cy="{y(other):.1f}" r="3">{_told(row)}'
            f"</circle>"
        )
    for at, rate, row in points:
        labels.keep_clear(x(at), y(rate))
        parts.append(
            f'<circle class="ours" cx="{x(at):.1f}" cy="{y(rate):.1f}" r="4">{_told(row)}</circle>'
        )
    parts += _op_labels(points, x, y, labels)
    return "".join(parts), WIDTH, HEIGHT


def _intensity(row: dict[str, Any]) -> float:
    return float(row["flops"] / max(row["bytes_read"] + row["bytes_written"], 1))


def _axes(x: _Scale, y: _Scale, dtype: str) -> list[str]:
    bottom = HEIGHT - BOTTOM
    parts = []
    for value in x.decades():
        at = x(value)
        parts.append(f'<line class="grid" x1="{at:.1f}" y1="{TOP}" x2="{at:.1f}" y2="{bottom}"/>')
        parts.append(
            f'<text class="tick" x="{at:.1f}" y="{bottom + 13}" text-anchor="middle">{value:g}'
            f"</text>"
        )
    for value in y.decades():
        at = y(value)
        parts.append(
            f'<line class="grid" x1="{LEFT}" y1="{at:.1f}" x2="{WIDTH - RIGHT}" y2="{at:.1f}"/>'
        )
        parts.append(
            f'<text class="tick" x="{LEFT - 5}" y="{at + 3.5:.1f}" text-anchor="end">{value:g}'
            f"</text>"
        )
    middle_x = (LEFT + WIDTH - RIGHT) / 2
    parts.append(
        f'<text class="faint" x="{middle_x}" y="{HEIGHT - 8}" text-anchor="middle">FLOPs a byte'
        f"</text>"
        f'<text class="head" x="{LEFT}" y="11">{dtype}</text>'
        f'<text class="faint" x="{LEFT + 34}" y="11">GFLOP/s</text>'
    )
    return parts


def _roof_labels(x: _Scale, y: _Scale, top: Ceilings, dtype: str, labels: _Labels) -> list[str]:
    bandwidth, peak = max(top.read, top.copy), top.compute(dtype)
    loops = {n: r for n, r in top.loops.items() if dtype in LOOPS.get(n, ()) and r == peak}
    source = f" ({next(iter(loops))})" if loops else " (torch GEMM)"
    flat = f"{quantity(peak, 'FLOP/s')}{source}"
    at = (WIDTH - RIGHT - 2, y(peak / 1e9) - 6)
    labels.taken.append((at[0] - LETTER * len(flat) - 6, at[1] - 14, WIDTH, at[1] + 9))
    # Along the slope, at the place a third of the way up.
    here = x.low * (peak / bandwidth / x.low) ** 0.45
    slope = (x(here), y(max(here * bandwidth / 1e9, y.low)))
    steep = -math.degrees(
        math.atan2(
            (y.start - y.end) / math.log10(y.high / y.low),
            (x.end - x.start) / math.log10(x.high / x.low),
        )
    )
    text = quantity(bandwidth, "B/s")
    for step in range(-5, 6):  # the box of a text that is turned, in pieces
        away = LETTER * len(text) * step / 10
        turned = math.radians(steep)
        labels.keep_clear(
            slope[0] + away * math.cos(turned) + 8 * math.sin(turned),
            slope[1] + away * math.sin(turned) - 8 * math.cos(turned),
            8,
        )
    return [
        f'<text x="{at[0]}" y="{at[1]:.1f}" text-anchor="end">{flat}</text>',
        f'<text transform="translate({slope[0]:.1f} {slope[1]:.1f}) rotate({steep:.1f})" y="-5" '
        f'text-anchor="middle">{text}</text>',
    ]


def _op_labels(
    points: list[tuple[float, float, dict[str, Any]]], x: _Scale, y: _Scale, labels: _Labels
) -> list[str]:
    """A name for each op, at its case with the most FLOPs, where there is room."""
    largest: dict[str, tuple[float, float, dict[str, Any]]] = {}
    for point in points:
        op = point[2]["op"]
        if op not in largest or point[2]["flops"] > largest[op][2]["flops"]:
            largest[op] = point
    # Far from the crowd first: the extremes are what one looks for.
    order = sorted(largest.items(), key=lambda item: -item[1][1])
    return [labels.place(op, x(at), y(rate)) for op, (at, rate, _) in order]
