"""What a report is made of: result files grouped by device, and pages of the documentation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flashvl_bench import schema
from flashvl_bench.gpu import peers
from flashvl_bench.gpu.state import State, warnings

DEVICE = ("cpu", "cores", "threads", "cache_bytes", "cpu_level")
DTYPES = ("bf16", "fp16", "fp32")
SHOWN = ("ops", "model", "profile")
NOT_OURS = ("torch", "torch.compile", *peers.NAMES)
Document = dict[str, Any]


class ReportError(ValueError):
    """Files that no report can be made of; the text says why."""


@dataclass
class Device:
    """The results of one machine, with one number of threads and one level of kernels."""

    machine: dict[str, Any]
    ops: Document | None = None
    models: list[Document] = field(default_factory=list)
    profiles: list[Document] = field(default_factory=list)

    @property
    def name(self) -> str:
        m = self.machine
        if m["gpu"] is not None:
            return f"{m['gpu']['name']} ({m['gpu']['arch']}, {m['gpu']['runtime']})"
        return f"{m['cpu']}, {m['threads']} threads, kernels at level {m['cpu_level']}"

    @property
    def documents(self) -> list[Document]:
        return [each for each in (self.ops, *self.models, *self.profiles) if each is not None]


def devices(paths: Sequence[str | Path]) -> list[Device]:
    """The devices of result files. SchemaError for a file that is none; ReportError where two tell
    of the same cases on the same device."""
    found: dict[tuple[Any, ...], Device] = {}
    source: dict[tuple[Any, ...], str | Path] = {}
    for path in paths:
        document = schema.read(path)
        machine, settings = document["machine"], document["settings"]
        device = (*(machine[name] for name in DEVICE), (machine["gpu"] or {}).get("name"))
        kind = document["schema"].rpartition("/")[2]
        if kind not in SHOWN:
            raise ReportError(f"{path} is of `{kind}`; a report shows {', '.join(SHOWN)}")
        subject = (device, kind) if kind == "ops" else (device, kind, repr(settings))
        if subject in source:
            raise ReportError(
                f"{source[subject]} and {path} are both `{kind}` of one machine in one way; a "
                f"report shows one of them"
            )
        source[subject] = path
        here = found.setdefault(device, Device(machine))
        if kind == "ops":
            here.ops = document
        else:
            (here.models if kind == "model" else here.profiles).append(document)
    return list(found.values())


def timed(document: Document, dtype: str | None = None) -> list[dict[str, Any]]:
    """The rows of kernels of ours that have a time: not PyTorch's, inductor's or a peer's."""
    return [
        row
        for row in document["rows"]
        if row["status"] == "ok"
        and row["backend"] not in NOT_OURS
        and dtype in (None, row["dtype"])
    ]


def launches(document: Document) -> bool:
    """The times are a GPU's, and each row says how its calls were launched."""
    return any(row["launch"] for row in document["rows"])


def gpu_facts(machine: dict[str, Any]) -> dict[str, Any]:
    """The facts of the GPU and its state before and after, as rows of their own."""
    if machine["gpu"] is None:
        return {}
    found = {}
    for name, value in machine["gpu"].items():
        if name in ("before", "after"):
            value = None if value is None else State(**value).line()
        found[f"GPU {name}"] = value
    return found


def gpu_doubts(device: Device) -> list[str]:
    """What makes the times of a GPU doubtful: clocks that moved, reasons to throttle."""
    machine = device.machine if device.ops is None else device.ops["machine"]
    gpu = machine["gpu"]
    return [] if gpu is None else warnings(gpu["before"], gpu["after"])


def plain_fraction(row: dict[str, Any]) -> float:
    """The fraction of the ceiling that the plain expression reaches on the same case."""
    return float(row["fraction"] * row["median"] / row["plain_median"])


def dtypes(document: Document) -> list[str]:
    """Those that have a time, in the order of `DTYPES`."""
    return [dtype for dtype in DTYPES if timed(document, dtype)]


@dataclass(frozen=True)
class Exactness:
    """A row of docs/numerics.md."""

    op: str
    dtype: str
    backend: str
    error: float
    plain: float
    allowed: float


def numerics(folder: Path) -> list[Exactness]:
    """The rows of docs/numerics.md; none where the page is absent."""
    page = folder / "numerics.md"
    if not page.is_file():
        return []
    found = []
    for line in page.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip(" `") for cell in line.strip("|").split("|")]
        if len(cells) == 6 and cells[1] in DTYPES:
            found.append(Exactness(*cells[:3], *(float(cell) for cell in cells[3:])))
    return found


def ladders(folder: Path) -> list[tuple[str, str]]:
    """(title, Markdown) of each page of docs/ladders, by name."""
    found = []
    for page in sorted((folder / "ladders").glob("*.md")):
        text = page.read_text(encoding="utf-8")
        head, _, rest = text.partition("\n")
        found.append((head.lstrip("# ").strip() or page.stem, rest))
    return found


def quantity(value: float, unit: str) -> str:
    """Three digits with a prefix: quantity(2.5e9, "B/s") is "2.5 GB/s"."""
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"


def figure(value: float) -> str:
    """Three digits, or all those before the point."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def middle(values: Iterable[float]) -> float:
    """The median; 0 of nothing."""
    ordered = sorted(values)
    half = len(ordered) // 2
    if not ordered:
        return 0.0
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2
