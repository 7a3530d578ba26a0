"""Nsight Compute beside a profile: the command for each CUDA kernel, and the reader of its CSV.

The commands name kernels by what the launch plans of flashvl_kernels/cuda instantiate, and find an
op by its NVTX range, which `flashvl-bench profile --nvtx` pushes. The CSV is that of `ncu --csv` as
its manual documents it: a line for each metric of each launch, after lines of other output. The
reader is tested on files written by hand after that description; no GPU has made one yet.
"""

from __future__ import annotations

import csv
import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from flashvl_bench.profile.record import RANGE
from flashvl_bench.profile.rows import Row
from flashvl_kernels.cuda import plan_module
from flashvl_kernels.spec import REGISTRY

TIME = "gpu__time_duration.sum"
READ, WRITTEN = "dram__bytes_read.sum", "dram__bytes_write.sum"
MEMORY = "gpu__compute_memory_throughput.avg.pct_of_peak_sustained_elapsed"
COMPUTE = "sm__throughput.avg.pct_of_peak_sustained_elapsed"
METRICS = (TIME, READ, WRITTEN, MEMORY, COMPUTE)
NEEDED = ("Kernel Name", "Metric Name", "Metric Unit", "Metric Value")

# ncu runs each launch several times over: few tokens, one answer recorded.
PROGRAM = "flashvl-bench profile --device cuda --nvtx --repeats 1 --tokens 4"
LARGEST_FILE = 256 << 20
UNITS = {
    "": 1.0, "%": 1.0, "byte": 1.0, "kbyte": 1e3, "mbyte": 1e6, "gbyte": 1e9,
    "ns": 1e-9, "nsecond": 1e-9, "us": 1e-6, "usecond": 1e-6, "ms": 1e-3, "msecond": 1e-3,
    "s": 1.0, "second": 1.0,
}  # fmt: skip


class NcuError(ValueError):
    """A CSV that is not what ncu writes; the text says what is missing and how to make it."""


def kernels(op: str) -> list[str]:
    """The names of the kernel functions that the op's launch plan names; none without a plan."""
    plan = plan_module(op)
    if plan is None:
        return []
    names = (instance.expression.partition("<")[0].strip() for instance in plan.instances())
    return list(dict.fromkeys(names))


def commands(ops: Iterable[str], program: Iterable[str] = ()) -> Iterator[tuple[str, str, str]]:
    """(op, kernel, command line) of each CUDA kernel of `ops`. program: what to profile; by default
    an answer of the tiny model."""
    run = list(program) or shlex.split(PROGRAM)
    for op in sorted(set(ops)):
        for kernel in kernels(op):
            yield (
                op,
                kernel,
                shlex.join(
                    [
                        *("ncu", "--target-processes", "all"),
                        *("--nvtx", "--nvtx-include", f"{RANGE}{op}/"),
                        *("--kernel-name", kernel, "--metrics", ",".join(METRICS)),
                        *("--print-units", "base", "--csv", "--log-file", f"{kernel}.ncu.csv"),
                        *run,
                    ]
                ),
            )


@dataclass
class _Launches:
    ids: set[tuple[str, str]] = field(default_factory=set)
    totals: dict[str, float] = field(default_factory=dict)
    peaks: dict[str, list[float]] = field(default_factory=dict)


def read(path: str | Path) -> list[Row]:
    """A row for each op and kernel of a CSV, in the columns of a profile, the longest first.

    seconds: the kernels' own, without launches and Python. bytes: what went over the device's
    memory, which for a good kernel is little more than the op's cost. fraction: the larger of the
    shares of peak that ncu gives of memory and of the multiprocessors, the mean of the launches.
    FLOPs are not in these metrics and stay 0.
    """
    try:
        if Path(path).stat().st_size > LARGEST_FILE:
            raise NcuError(f"{path} has more than {LARGEST_FILE} bytes")
        text = Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise NcuError(f"{path} cannot be read: {error.strerror or error}") from error
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if _is_head(line)), None)
    if start is None:
        raise NcuError(
            f"{path} has no line with the columns {', '.join(NEEDED)}; make it with the commands "
            f"of `flashvl-bench profile --ncu`, which pass --csv"
        )
    found: dict[tuple[str, str], _Launches] = {}
    for number, line in enumerate(csv.DictReader(lines[start:]), start + 2):
        if None in line or any(line.get(name) is None for name in NEEDED):
            raise NcuError(f"{path}, line {number}: not as many cells as columns (cut short?)")
        _add(found, line, f"{path}, line {number}")
    made = [_row(*key, launches, str(path)) for key, launches in found.items()]
    return sorted(made, key=lambda row: -row.seconds)


def _is_head(line: str) -> bool:
    return all(name in next(csv.reader([line]), []) for name in NEEDED)


def _add(found: dict[tuple[str, str], _Launches], line: dict[str, str], place: str) -> None:
    metric = line["Metric Name"]
    if metric not in METRICS:
        return
    kernel = re.split(r"[<(]", line["Kernel Name"].removeprefix("void "))[0].split("::")[-1]
    launches = found.setdefault((_op(line, kernel), kernel), _Launches())
    launches.ids.add((line.get("Process ID", ""), line.get("ID", "")))
    value = _value(line["Metric Value"], line["Metric Unit"], place)
    if metric in (MEMORY, COMPUTE):
        launches.peaks.setdefault(metric, []).append(value)
    else:
        launches.totals[metric] = launches.totals.get(metric, 0.0) + value


def _op(line: dict[str, str], kernel: str) -> str:
    """The op: of its NVTX range where the file has one, else the one whose plan has the kernel."""
    for name, value in line.items():
        if name and "Range" in name:
            inside = re.findall(re.escape(RANGE) + r"(\w+)", value or "")
            known = [op for op in inside if op in REGISTRY]
            if known:
                return known[-1]
    return next((op for op in sorted(REGISTRY) if kernel in kernels(op)), kernel)


def _value(text: str, unit: str, place: str) -> float:
    if unit.lower() not in UNITS:
        raise NcuError(f"{place}: the unit is {unit!r}; needs one of {', '.join(UNITS)}")
    try:
        value = float(text.replace(",", ""))
    except ValueError:
        raise NcuError(f"{place}: the value is {text!r}; needs a number") from None
    if not 0 <= value < 1e18:
        raise NcuError(f"{place}: the value is {text!r}, which no kernel reaches")
    return value * UNITS[unit.lower()]


def _row(op: str, kernel: str, launches: _Launches, path: str) -> Row:
    missing = [metric for metric in METRICS[:3] if metric not in launches.totals]
    if missing:
        raise NcuError(f"{path}: {kernel} has no metric {missing[0]}; measure it with --metrics")
    shares = {name: sum(v) / len(v) / 100 for name, v in launches.peaks.items()}
    top = max(shares, key=lambda name: shares[name], default="")
    return Row(
        "GPU, by ncu",
        op,
        "",
        "",
        "cuda",
        kernel,
        len(launches.ids),
        launches.totals[TIME],
        round(launches.totals[READ]),
        round(launches.totals[WRITTEN]),
        0,
        shares.get(top),
        {MEMORY: "memory", COMPUTE: "compute"}.get(top, ""),
    )
