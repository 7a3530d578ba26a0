"""The generated tables of the documentation: what each op supports, and how exact it is.

    python -m flashvl_kernels.docs            write docs/ops.md and docs/numerics.md
    python -m flashvl_kernels.docs --check    exit 1, naming the file, where one of them is stale

Both come from the OpSpecs: every op is asked through its samples. Nothing in them depends on the
machine's speed or on the date. docs/ops.md is compared to the letter. The errors in
docs/numerics.md differ in their digits between instruction sets, so of it only the rows are
compared (op, dtype, backend), and that the error in each is within what was allowed.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import flashvl_kernels  # noqa: F401  (registers the ops)
from flashvl_kernels import extension, numerics, simt
from flashvl_kernels.backends import why_not
from flashvl_kernels.spec import REGISTRY, OpSpec, Sample, Tolerance, capture

FOLDER = Path(__file__).resolve().parent.parent / "docs"
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
ASKED = ("typical", "edge", "strided", "zero")  # kinds of samples that are asked for support
MEASURED = ("typical", "strided")  # those whose errors are shown: edge ones hold NaN and extremes

NOTE = "<!-- Written by `python -m flashvl_kernels.docs`; do not edit. -->"


def _flat(spec: OpSpec, sample: Sample, dtype: torch.dtype) -> tuple[Any, ...]:
    built = sample.build(dtype)
    return capture(spec.function, *built.args, **built.kwargs)[1]


def _samples(spec: OpSpec, kinds: tuple[str, ...]) -> list[Sample]:
    return [sample for sample in spec.samples if sample.kind in kinds]


# ---- ops.md ------------------------------------------------------------------------------------


def backend_columns() -> list[str]:
    """Every backend that some op claims, and torch: the same on every machine."""
    claimed = dict.fromkeys(name for spec in REGISTRY.values() for name in spec.kernels)
    return [*claimed, "torch"]


def support(spec: OpSpec, backend: str, dtype: torch.dtype) -> str:
    """How many of the op's samples `backend` supports: "yes", "no", or "n of m" and a reason."""
    samples = _samples(spec, ASKED)
    if backend == "torch":
        return "yes"
    if backend not in spec.kernels:
        return "-"
    reasons = [spec.kernels[backend](*_flat(spec, sample, dtype)) for sample in samples]
    refused = [reason for reason in reasons if reason is not None]
    if not refused:
        return "yes"
    told = "; ".join(dict.fromkeys(refused))
    return f"{len(samples) - len(refused)} of {len(samples)} samples ({told})"


def _gradient(spec: OpSpec) -> str:
    if spec.mutates or not spec.differentiable:
        return "no"
    return "recomputed" if spec.backward is None else "by formulas"


def summary(spec: OpSpec) -> str:
    """The first line of the public function's docstring."""
    return (inspect.getdoc(spec.function) or "").partition("\n")[0]


def ops_page() -> str:
    """docs/ops.md."""
    columns = backend_columns()
    lines = [
        NOTE,
        "# The ops",
        "",
        "Each op is one file, `flashvl_kernels/ops/<op>.py`, and registered as `flashvl::<op>`.",
        "",
        "| op | computes | gradient |",
        "|---|---|---|",
    ]
    for name, spec in sorted(REGISTRY.items()):
        lines.append(f"| `{name}` | {summary(spec)} | {_gradient(spec)} |")
    lines += [
        "",
        "## Which backend has a kernel",
        "",
        "`torch` is the reference and runs every call. A kernel is asked through all the op's "
        "samples (typical, edge, strided and zero-size); `-` means that the op has no kernel in "
        "that backend, and the `torch` backend runs it. Whether a machine can run a backend: "
        "`flashvl-kernels doctor`; for one call: `flashvl-kernels explain <op>`.",
        "",
        "| op | dtype | " + " | ".join(columns) + " |",
        "|---|---|" + "---|" * len(columns),
    ]
    for name, spec in sorted(REGISTRY.items()):
        for short, dtype in DTYPES.items():
            cells = [support(spec, column, dtype) for column in columns]
            lines.append(f"| `{name}` | {short} | " + " | ".join(cells) + " |")
    lines += ["", "## Schemas", "", "The calls as `torch.library` sees them; users call the Python"]
    lines += ["function of the same name, which takes structured arguments.", "", "```"]
    lines += [f"flashvl::{name}{spec.schema}" for name, spec in sorted(REGISTRY.items())]
    return "\n".join([*lines, "```", ""])


# ---- numerics.md -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Errors:
    """Root mean square errors against the oracle, relative to the oracle's own size."""

    error: float
    plain: float
    allowed: float
    right: bool

    @property
    def strain(self) -> float:
        """The error as a share of what is allowed."""
        return self.error / self.allowed if self.allowed else 0.0


def errors(spec: OpSpec, backend: str, dtype: torch.dtype) -> Errors:
    """The worst of all samples and outputs, by the share of what is allowed."""
    found = []
    for sample in _samples(spec, MEASURED):
        flat = _flat(spec, sample, dtype)
        if backend == "cuda":  # its own kernels, executed on the CPU
            if spec.kernels[backend](*flat) is not None:
                continue
            got = simt.results(spec, flat)
        elif why_not(spec, backend, flat) is None:
            got = numerics.results(spec, spec.kernel(backend).run, flat)
        else:
            continue
        plain = numerics.results(spec, spec.reference, flat)
        truth = numerics.oracle(spec, flat)
        for mine, naive, exact in zip(got, plain, truth, strict=True):
            if exact.is_floating_point() and exact.numel() and bool(exact.isfinite().all()):
                found.append(_compared(mine, naive, exact, spec.tolerance))
    wrong = [each for each in found if not each.right]
    nothing = Errors(0.0, 0.0, 0.0, True)
    return wrong[0] if wrong else max(found, key=lambda e: (e.strain, e.allowed), default=nothing)


def _compared(got: Tensor, plain: Tensor, truth: Tensor, tolerance: Tolerance) -> Errors:
    verdict = numerics.judge(got, plain, truth, tolerance)
    naive = numerics.judge(plain, plain, truth, tolerance)
    size = float(truth.square().mean().sqrt()) or 1.0
    return Errors(verdict.rms / size, naive.rms / size, verdict.rms_allowed / size, verdict.right)


def numerics_rows() -> Iterator[tuple[str, str, str, OpSpec]]:
    """(op, dtype, backend, spec) of every row, the same on every machine. Triton kernels are
    executed by the tests alone."""
    for name, spec in sorted(REGISTRY.items()):
        for short in DTYPES:
            for backend in [name for name in spec.kernels if name != "triton"] + ["torch"]:
                yield name, short, backend, spec


def numerics_page() -> str:
    """docs/numerics.md. Raises RuntimeError where a claimed backend cannot run on this machine."""
    missing = missing_backends()
    if missing:
        raise RuntimeError(missing)
    lines = [
        NOTE,
        "# How exact each op is",
        "",
        "The oracle is the op's reference in float64. A result may err by at most twice what the "
        "plain PyTorch expression in the same dtype errs, plus one rounding of the result, both "
        "as root mean square (below, relative to the oracle's) and for every element; NaN and "
        "Inf stand where the oracle has them. Each row is the typical or strided sample that "
        "comes closest to what is allowed; 0 means equal to the oracle. `torch` is the plain "
        "expression itself, `cuda` the CUDA kernels executed by `csrc/simt`. The digits differ a "
        "little between instruction sets.",
        "",
        "| op | dtype | backend | error | plain PyTorch | allowed |",
        "|---|---|---|---|---|---|",
    ]
    for name, short, backend, spec in numerics_rows():
        e = errors(spec, backend, DTYPES[short])
        if not e.right:
            raise RuntimeError(f"{name} in {short} on {backend} is wrong: run the tests")
        figures = " | ".join(_figure(value) for value in (e.error, e.plain, e.allowed))
        lines.append(f"| `{name}` | {short} | {backend} | {figures} |")
    reasons = dict.fromkeys(spec.tolerance.reason for spec in REGISTRY.values())
    lines += ["", "Tolerances, and why:", ""]
    for reason in reasons:
        names = [n for n, s in sorted(REGISTRY.items()) if s.tolerance.reason == reason]
        lines.append(f"- {reason}: {', '.join(f'`{name}`' for name in names)}")
    return "\n".join([*lines, ""])


def missing_backends() -> str:
    """Why docs/numerics.md cannot be written on this machine; empty when it can."""
    claimed = backend_columns()
    if "cpu" in claimed and not extension.EXTENSION.loaded:
        return f"the extension is absent, so the cpu rows are unknown: {extension.EXTENSION.reason}"
    if "cuda" in claimed and simt.unavailable():
        return f"the CUDA kernels cannot be executed: {simt.unavailable()}"
    return ""


def _figure(value: float) -> str:
    return "0" if value == 0 else f"{value:.1e}"


def numerics_stale(text: str) -> str:
    """What is stale in the text of docs/numerics.md; empty when nothing is."""
    found = {}
    for line in text.splitlines():
        cells = [cell.strip(" `") for cell in line.strip("|").split("|")]
        if len(cells) == 6 and cells[1] in DTYPES:
            found[tuple(cells[:3])] = cells[3:]
    wanted = {row[:3] for row in numerics_rows()}
    for row in sorted(wanted ^ set(found)):
        return f"the row {' '.join(row)} is {'missing' if row in wanted else 'too many'}"
    for row, (error, _, allowed) in found.items():
        if float(error) > float(allowed):
            return f"the row {' '.join(row)} shows an error above what is allowed"
    return ""


# ---- the command -------------------------------------------------------------------------------


def check(folder: Path) -> list[str]:
    """The stale files of `folder`, each with the reason."""
    stale = []
    pages = {name: folder / name for name in ("ops.md", "numerics.md")}
    texts = {name: path.read_text() if path.is_file() else "" for name, path in pages.items()}
    if texts["ops.md"] != ops_page():
        stale.append(f"{pages['ops.md']} differs from what the ops say now")
    reason = numerics_stale(texts["numerics.md"])
    if reason:
        stale.append(f"{pages['numerics.md']}: {reason}")
    return stale


def write(folder: Path) -> str:
    """Write both pages; returns why one was left as it is, or nothing."""
    (folder / "ops.md").write_text(ops_page())
    try:
        page = numerics_page()
    except RuntimeError as error:
        return f"{folder / 'numerics.md'} is left as it is: {error}"
    (folder / "numerics.md").write_text(page)
    return ""


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m flashvl_kernels.docs", description="Write the generated documentation."
    )
    parser.add_argument("--check", action="store_true", help="only say which files are stale")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the pages lie")
    options = parser.parse_args(argv)
    if not options.folder.is_dir():
        print(
            f"--folder is {options.folder}, which is no folder; run this in a checkout of the "
            "repository, or name its docs folder",
            file=sys.stderr,
        )
        return 2
    if options.check:
        stale = check(options.folder)
        for each in stale:
            print(f"stale: {each}; run: python -m flashvl_kernels.docs", file=sys.stderr)
        return 1 if stale else 0
    left = write(options.folder)
    if left:
        print(left, file=sys.stderr)
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
