"""docs/speed.md, and the picture of a README: the results of `flashvl-bench ops` in short."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flashvl_bench.page import charts
from flashvl_bench.page.data import (
    Device,
    ReportError,
    dtypes,
    figure,
    gpu_doubts,
    launches,
    quantity,
    timed,
)
from flashvl_bench.report import duration, launch

GAP = 28  # px between two drawings


def picture(found: Sequence[Device]) -> str:
    """Each op's distance to its ceiling on the first device with times, in two dtypes, as SVG."""
    for device in found:
        if device.ops is not None and timed(device.ops):
            ops = device.ops
            drawn = [charts.distance(ops, dtype) for dtype in dtypes(ops)[:2]]
            first, *rest = drawn
            spaced = [(first[0], first[1] + GAP * bool(rest), first[2]), *rest]
            return charts.alone(spaced, "Fraction of the ceiling of each op")
    raise ReportError("the picture needs a result file of `flashvl-bench ops` with times in it")


def speed_page(found: Sequence[Device]) -> str:
    """docs/speed.md: a table a device, a row for each case of each of our kernels."""
    lines = [
        "<!-- Written by `flashvl-bench report --speed`; do not edit. -->",
        "# How fast each op is",
        "",
        "One call, median; how, and how to read it: [benchmarking.md](benchmarking.md). The "
        "ceiling is what the same machine can do at most, measured in the same process.",
    ]
    for device in found:
        if device.ops is None or not timed(device.ops):
            continue
        m, top = device.machine, device.ops["ceilings"]
        on_gpu = launches(device.ops)
        lines += [
            "",
            f"## {_plain(device.name)}",
            "",
            f"{_plain(m['date'])}, torch {_plain(m['torch'])}; read "
            f"{quantity(top['read'], 'B/s')}, copy {quantity(top['copy'], 'B/s')}.",
            *(f"\n**Warning:** {_plain(doubt)}." for doubt in gpu_doubts(device)),
            "",
            "| op | sample | dtype | backend | median | GB/s | GFLOP/s | of the ceiling | plain "
            "PyTorch | speed-up |" + (" launch |" if on_gpu else ""),
            "|---|---|---|---|---|---|---|---|---|---|" + ("---|" if on_gpu else ""),
        ]
        lines += [_speed_line(row) for row in timed(device.ops)]
    if len(lines) == 4:
        raise ReportError("docs/speed.md needs a result file of `flashvl-bench ops` with times")
    return "\n".join([*lines, ""])


def _plain(text: str) -> str:
    """Text that no Markdown table or heading takes for markup."""
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())


def _speed_line(row: dict[str, Any]) -> str:
    cells = (
        f"`{row['op']}`",
        row["sample"],
        row["dtype"],
        row["backend"],
        duration(row["median"]),
        figure(row["bytes_per_second"] / 1e9),
        figure(row["flops_per_second"] / 1e9),
        f"{row['fraction']:.0%} {row['bound']}",
        duration(row["plain_median"]),
        f"{row['plain_median'] / row['median']:.2f}x",
        *([launch(row["launch"], row["plain_launch"])] if row["launch"] else []),
    )
    return "| " + " | ".join(map(_plain, cells)) + " |"
