"""`flashvl-bench report`: result files as one page that needs nothing else.

The page holds its style, its one short script and its drawings; it fetches nothing, and a policy in
its head forbids it to. Everything that comes out of a file is escaped.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from flashvl_bench import schema
from flashvl_bench.page import charts as drawings
from flashvl_bench.page import style
from flashvl_bench.page.data import (
    Device,
    Document,
    Exactness,
    ReportError,
    devices,
    dtypes,
    figure,
    gpu_doubts,
    gpu_facts,
    ladders,
    launches,
    middle,
    numerics,
    plain_fraction,
    quantity,
    timed,
)
from flashvl_bench.page.markdown import html as from_markdown
from flashvl_bench.page.markdown import inline
from flashvl_bench.page.speed import picture, speed_page
from flashvl_bench.profile import flame as profile_flame
from flashvl_bench.profile.record import ROOT
from flashvl_bench.profile.rows import OUTSIDE, RECORDER
from flashvl_bench.report import duration, launch

TITLE = "flashvl-kernels: how far each kernel is from the hardware's limit"
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


SHORT = {
    "Distance to the ceiling": "Distance",
    "Roofline": "Roofline",
    "Speed of each case": "Speed",
    "The model beside its peers": "Model",
    "Where an answer's time goes": "Profile",
    "Machine and ceilings": "Machine",
}
"""What the sections are called in the navigation."""


@dataclass(frozen=True)
class Cell:
    """What a table shows, and what it sorts by ("" for nothing to sort by)."""

    html: str
    value: float | str = ""
    kind: str = ""
    columns: int = 1

    def __str__(self) -> str:
        kind = f' class="{self.kind}"' if self.kind else ""
        kind += f' colspan="{self.columns}"' if self.columns > 1 else ""
        return f'<td{kind} data-v="{escape(str(self.value))}">{self.html}</td>'


def word(text: str) -> Cell:
    """Text as it is; where the column is too narrow, all of it when pointed at."""
    shown = escape(text)
    return Cell(f'<span title="{shown}">{shown}</span>' if len(text) > 28 else shown, text)


def number(shown: str, value: float | None) -> Cell:
    """A figure, right-aligned; empty where there is none."""
    return Cell("" if value is None else escape(shown), "" if value is None else value, "n")


def share(value: float | None, note: str = "") -> Cell:
    """A percentage with a bar."""
    if value is None:
        return Cell("", "", "n")
    width = min(max(value, 0.0), 1.0) * 100
    bar = f'<span class="bar"><i style="width:{width:.0f}%"></i></span>'
    return Cell(f"{value:.0%}{escape(note and f' {note}')}{bar}", value, "n")


def table(name: str, heads: Sequence[str], rows: Iterable[Sequence[Cell]], find: str = "") -> str:
    """A table that sorts by a click on its head. A head that begins with > is right-aligned."""
    cells = "".join(
        f'<th scope="col"{" class=n" if head.startswith(">") else ""}>'
        f"<button>{escape(head.lstrip('>'))}</button></th>"
        for head in heads
    )
    body = "\n".join(f"<tr>{''.join(map(str, row))}</tr>" for row in rows)
    box = (
        f'<input class="find" type="search" data-table="{name}" placeholder="{escape(find)}" '
        f'aria-label="{escape(find)}">'
        if find
        else ""
    )
    return (
        f'{box}<div class="wide tall"><table class="data" id="{name}"><thead><tr>{cells}</tr>'
        f"</thead><tbody>\n{body}\n</tbody></table></div>"
    )


# ---- one device --------------------------------------------------------------------------------


def speed(document: Document, name: str) -> str:
    """The table of all cases; one without a time says why."""
    heads = (
        "op", "sample", "dtype", "backend", ">median", ">± IQR", ">GB/s", ">GFLOP/s",
        ">of the ceiling", ">plain", ">speed-up", *(["launch"] if launches(document) else []),
    )  # fmt: skip
    rows = (_speed_row(row, len(heads)) for row in document["rows"])
    return table(name, heads, rows, "find an op, a sample, a dtype")


def _speed_row(row: dict[str, Any], columns: int) -> list[Cell]:
    start = [word(row[key]) for key in ("op", "sample", "dtype")]
    start.append(word(row["backend"] or row["asked"]))
    if row["status"] != "ok":
        reason = escape(f"{row['status']}: {row['reason']}")
        return [*start, Cell(reason, "", "why", columns - len(start))]
    ratio = row["plain_median"] / row["median"]
    launched = word(launch(row["launch"], row["plain_launch"]))
    return [
        *start,
        number(duration(row["median"]), row["median"]),
        number(duration(row["iqr"] or 0.0), row["iqr"]),
        number(figure(row["bytes_per_second"] / 1e9), row["bytes_per_second"]),
        number(figure(row["flops_per_second"] / 1e9), row["flops_per_second"]),
        share(row["fraction"], row["bound"]),
        number(duration(row["plain_median"]), row["plain_median"]),
        number(f"{ratio:.2f}x", ratio),
        *([launched] if row["launch"] else []),
    ]


def summary(document: Document) -> str:
    """Three figures: how near to the ceiling, how near plain PyTorch comes, and the ratio."""
    rows = timed(document)
    untimed = sum(row["status"] in ("wrong", "fails") for row in document["rows"])
    figures = (
        (f"{middle(r['fraction'] for r in rows):.0%}", "of the ceiling: median of our kernels"),
        (f"{middle(map(plain_fraction, rows)):.0%}", "of the ceiling: plain PyTorch, same cases"),
        (f"{middle(r['plain_median'] / r['median'] for r in rows):.2f}x", "median speed-up"),
        (f"{len(rows)}", f"cases timed, {untimed} wrong or failed"),
    )
    items = "".join(f"<li><strong>{a}</strong><span>{escape(b)}</span></li>" for a, b in figures)
    return f'<ul class="facts">{items}</ul>'


def charts(document: Document, draw: Any, words: str) -> str:
    """A drawing for each dtype that has times."""
    figures = []
    for dtype in dtypes(document):
        body, width, height = draw(document, dtype)
        title = f"{words}, {dtype}"
        figures.append(f"<figure>{drawings.inline(body, width, height, title)}</figure>")
    return f'<div class="pair">{"".join(figures)}</div>'


def model_part(document: Document) -> str:
    """Each part of the model in each weight format beside its peers, as bars of time."""
    groups = []
    order = list(dict.fromkeys(row["part"] for row in document["parts"]))
    for row in sorted(document["parts"], key=lambda row: order.index(row["part"])):
        sides = [("ours", row["median"], row["status"], row["reason"])]
        sides += [(p["name"], p["median"], p["status"], p["reason"]) for p in row["peers"]]
        longest = max((seconds for _, seconds, _, _ in sides if seconds), default=1.0)
        lines = "".join(_side(*side, longest) for side in sides)
        note = "" if row["fraction"] is None else f", {row['fraction']:.0%} of the ceiling"
        head = escape(f"{row['part']}, {row['weights']}{note}")
        groups.append(f'<figure><h4>{head}</h4><div class="sides">{lines}</div></figure>')
    settings = document["settings"]
    depth = "" if settings["layers"] is None else f", depth cut to {settings['layers']}"
    words = (
        f"{settings['config']}, activations in {settings['dtype']}{depth}, prompt of "
        f"{settings['prompt']} tokens; time of one call, shorter is better."
    )
    return f'<p class="note">{escape(words)}</p><div class="pair">{"".join(groups)}</div>'


def _side(name: str, seconds: float | None, status: str, reason: str, longest: float) -> str:
    own = ' class="own"' if name == "ours" else ""
    if seconds is None:
        told = escape(f"{status}: {reason}")
        return f'<span{own}>{escape(name)}</span><span class="why">{told}</span>'
    width = f'style="width:{100 * seconds / longest:.1f}%"'
    return (
        f"<span{own}>{escape(name)}</span><span><i{own} {width}></i></span>"
        f"<span{own}>{duration(seconds)}</span>"
    )


def profile_part(document: Document, name: str) -> str:
    """The flame graph and the rows of one profiled answer."""
    paths: dict[tuple[str, ...], float] = {}
    for row in document["rows"]:
        if row["op"] == RECORDER:
            continue
        inside = () if row["op"] == OUTSIDE else (row["op"], row["shape"])
        path = (ROOT, *inside) if row["where"] == ROOT else (ROOT, row["where"], *inside)
        paths[path] = paths.get(path, 0.0) + row["seconds"]
    ops = frozenset(row["op"] for row in document["rows"] if row["backend"])
    settings, wall = document["settings"], document["walls"]["recorded"]
    words = f"One answer of {settings['config']}, {settings['tokens']} tokens, {settings['dtype']}"
    flame = profile_flame.svg(paths, ops, words)
    heads = ("where", "op", "shape", "backend", ">calls", ">time", ">share", ">of the ceiling")
    rows = (
        [
            *(word(row[key]) for key in ("where", "op", "shape", "backend")),
            number(str(row["calls"]), row["calls"] or None),
            number(duration(row["seconds"]), row["seconds"]),
            share(row["seconds"] / wall),
            share(row["fraction"], row["bound"]),
        ]
        for row in document["rows"]
    )
    return f'<div class="scroll">{flame}</div>{table(name, heads, rows, "find a row")}'


def machine_part(device: Device) -> str:
    """The facts of the machine and the ceilings measured on it."""
    shown_facts = {
        name.replace("_bytes", "").replace("_", " "): (
            f"{value / 2**20:,.0f} MiB" if name.endswith("_bytes") else str(value)
        )
        for name, value in {**device.machine, **gpu_facts(device.machine)}.items()
        if value is not None and name != "gpu"
    }
    facts = "".join(
        f"<tr><th scope=row>{escape(name)}</th><td>{escape(value)}</td></tr>"
        for name, value in shown_facts.items()
    )
    doubts = "".join(f"<p class=why>Warning: {escape(text)}.</p>" for text in gpu_doubts(device))
    document = next((d for d in device.documents if d["ceilings"]), None)
    shown = ""
    if document is not None:
        shown = "".join(_ceiling_rows(document))
    head = "<thead><tr><th>ceiling</th><th class=n>before</th><th class=n>after</th></tr></thead>"
    return (
        f'{doubts}<div class="pair"><div class="wide"><table><tbody>{facts}</tbody></table></div>'
        f'<div class="wide"><table>{head}<tbody>{shown}</tbody></table></div></div>'
    )


def _ceiling_rows(document: Document) -> Iterable[str]:
    before, after = document["ceilings"], document.get("ceilings_end") or {}
    lines = [(n, before[n], after.get(n), "B/s") for n in ("read", "copy")]
    lines += [(n, v, after.get("loops", {}).get(n), "FLOP/s") for n, v in before["loops"].items()]
    lines += [
        (f"torch GEMM {n}", v, after.get("gemm", {}).get(n), "FLOP/s")
        for n, v in before["gemm"].items()
    ]
    for name, first, last, unit in lines:
        end = "" if last is None else quantity(last, unit)
        yield (
            f"<tr><th scope=row>{escape(name)}</th><td class=n>{quantity(first, unit)}</td>"
            f"<td class=n>{end}</td></tr>"
        )


Sections = list[tuple[str, str, str]]  # anchor, title, HTML


def sections(device: Device, number_: int) -> Sections:
    """What there is to show of one device."""
    found: Sections = []
    if device.ops is not None and timed(device.ops):
        ops, mark = device.ops, f"-{number_}"
        found += [
            (
                f"distance{mark}",
                "Distance to the ceiling",
                "<p>Each point is one case: the least time this machine could take for the bytes "
                "and FLOPs of the op, over the time it took.</p>"
                + summary(ops)
                + charts(ops, drawings.distance, "fraction of the ceiling of each op"),
            ),
            (
                f"roofline{mark}",
                "Roofline",
                "<p>Under the slope a kernel waits for memory, under the flat roof for arithmetic. "
                "Blue is our kernel, grey the plain PyTorch expression on the same case; the line "
                "between them is the gain.</p>" + charts(ops, drawings.roofline, "roofline"),
            ),
        ]
    if device.ops is not None:
        found.append(
            (f"speed-{number_}", "Speed of each case", speed(device.ops, f"ops-{number_}"))
        )
    if device.models:
        parts = "".join(map(model_part, device.models))
        found.append((f"model-{number_}", "The model beside its peers", parts))
    for i, document in enumerate(device.profiles):
        name = f"profile-{number_}-{i}"
        found.append((name, "Where an answer's time goes", profile_part(document, f"rows-{name}")))
    found.append((f"machine-{number_}", "Machine and ceilings", machine_part(device)))
    return found


# ---- the page ----------------------------------------------------------------------------------


def exactness(rows: Sequence[Exactness]) -> str:
    """The table of docs/numerics.md."""
    heads = ("op", "dtype", "backend", ">error", ">plain PyTorch", ">allowed", ">share of allowed")
    cells = (
        [
            word(row.op),
            word(row.dtype),
            word(row.backend),
            number(f"{row.error:.1e}", row.error),
            number(f"{row.plain:.1e}", row.plain),
            number(f"{row.allowed:.1e}", row.allowed),
            share(row.error / row.allowed if row.allowed else 0.0),
        ]
        for row in rows
    )
    return table("numerics", heads, cells, "find an op, a dtype, a backend")


def page(found: Sequence[Device], docs: Path) -> str:
    """The whole page."""
    parts: list[str] = []
    anchors: list[tuple[str, str]] = []
    for i, device in enumerate(found, 1):
        several = len(found) > 1
        if several:
            parts.append(f"<h2>{escape(device.name)}</h2>")
        for anchor, title, body in sections(device, i):
            tag = "h3" if several else "h2"
            parts.append(f'<section id="{anchor}"><{tag}>{title}</{tag}>{body}</section>')
            if i == 1:
                anchors.append((anchor, SHORT[title]))
    exact, pages = numerics(docs), ladders(docs)
    if exact:
        note = (
            "<p>Root mean square error against float64, relative to the result: at most twice that "
            "of the plain PyTorch expression in the same dtype, plus one rounding.</p>"
        )
        parts.append(f'<section id="exact"><h2>Numerics</h2>{note}{exactness(exact)}</section>')
        anchors.append(("exact", "Numerics"))
    if pages:
        body = "".join(
            f"<details><summary>{inline(title)}</summary>{from_markdown(text)}</details>"
            for title, text in pages
        )
        note = "<p>What each step gave, from a kernel's first version to the one that is here.</p>"
        parts.append(f'<section id="ladders"><h2>Ladders</h2>{note}{body}</section>')
        anchors.append(("ladders", "Ladders"))
    links = "".join(f'<li><a href="#{a}">{escape(t)}</a></li>' for a, t in anchors)
    newest = max(device.machine["date"] for device in found)[:16].replace("T", " ")
    lead = "; ".join(device.name for device in found)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{TITLE}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<style>{style.CSS}</style></head><body>"
        f"<header><h1>{TITLE}</h1><p class=lead>{escape(lead)}. Measured {escape(newest)} UTC.</p>"
        f"</header><nav><ul>{links}</ul></nav><main>{''.join(parts)}</main>"
        f"<footer>Written by <code>flashvl-bench report</code>. Figures of one device compare "
        f"within one run only; how they are measured is in docs/benchmarking.md.</footer>"
        f"<script>{style.SCRIPT}</script></body></html>\n"
    )


# ---- the command ------------------------------------------------------------------------------


def run(files: Sequence[str], outputs: dict[str, str | None], docs: str) -> int:
    """The command line. outputs: where to write "page", "speed" and "picture", None for not. Exit
    status 2 for files that cannot be shown."""
    makers = {
        "page": lambda found: page(found, Path(docs)),
        "speed": speed_page,
        "picture": picture,
    }
    try:
        found = devices(files)
        made = {path: makers[name](found) for name, path in outputs.items() if path}
        for path, text in made.items():
            Path(path).write_text(text, encoding="utf-8")
            print(f"written: {path}, {len(text.encode()) / 1024:.0f} KiB")
        if outputs.get("page") and not numerics(Path(docs)):
            print(f"without numerics and ladders: {docs} has none; name a checkout's by --docs")
    except (schema.SchemaError, ReportError) as error:
        print(f"flashvl-bench report: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"flashvl-bench report: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    return 0
