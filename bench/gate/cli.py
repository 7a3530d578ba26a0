"""`flashvl-bench gate --base REF --head REF`: is the head slower than the base?

Both refs are checked out and built (checkouts.py), held by two processes on this machine that take
turns (turns.py, side.py), and judged (verdict.py). `--static` compares instead what does not depend
on the machine's mood: machine-code budgets and counts of instructions (static.py).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flashvl_bench.compare import Change
    from flashvl_bench.gate.turns import Settings
    from flashvl_bench.gate.verdict import Measured

PATHS = (".", "src", "model")
LEAST = 0.05


def arguments(commands: Any) -> None:
    """The options of the command."""
    gate = commands.add_parser("gate", help="two git refs against each other, for CI")
    gate.set_defaults(run=partial(run, gate))
    gate.add_argument("--base", required=True, metavar="REF", help="what the head is held against")
    gate.add_argument("--head", default="HEAD", metavar="REF", help="default: HEAD")
    gate.add_argument("--repository", default=".", metavar="FOLDER", help="default: here")
    gate.add_argument(
        "--build",
        metavar="COMMAND",
        help="builds a ref in its checkout; none: nothing is built (default: this package's build)",
    )
    gate.add_argument(
        "--path",
        type=lambda text: tuple(text.split(",")),
        default=PATHS,
        help=f"folders of a checkout to import from (default: {','.join(PATHS)})",
    )
    gate.add_argument("--cases", metavar="FILE.py", help="its cases() yields the OwnCases to time")
    gate.add_argument("--op", type=_words, default=(), help="ops, by commas (default: all)")
    gate.add_argument("--dtype", type=_words, default=("bf16",), help="default: bf16")
    gate.add_argument("--backend", default="auto", help="default: auto")
    gate.add_argument("--samples", type=int, default=3, help="of an op, the cheapest (default: 3)")
    gate.add_argument("--cold", action="store_true", help="other arguments in every call; noisier")
    gate.add_argument("--seconds", type=float, default=2.0, help="of a case at most (default: 2)")
    gate.add_argument("--threads", type=int, help="default: PyTorch's")
    gate.add_argument(
        "--least", type=float, help=f"the least change to tell (default: {LEAST}; static: 0.02)"
    )
    gate.add_argument("--markdown", metavar="FILE", help="write a pull request's summary here")
    gate.add_argument("--json", metavar="FILE", help="write every time here")
    gate.add_argument("--static", action="store_true", help="only what is deterministic")
    gate.add_argument(
        "--budget",
        action="append",
        metavar="FILE.json",
        help="--static: numbers in the repository to compare; repeat it (default: those of tests/)",
    )
    gate.add_argument(
        "--no-instructions", action="store_true", help="--static: the budgets alone, no valgrind"
    )


def _words(text: str) -> tuple[str, ...]:
    return tuple(word for word in text.replace(",", " ").split() if word)


def run(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    """The command line. Exit status 0; 1 if a case is slower, broken or gone; 2 if there is nothing
    to judge by: a ref that is unknown or does not build, a side that does not start."""
    from flashvl_bench.gate.checkouts import CheckoutError
    from flashvl_bench.remote import RemoteError
    from flashvl_kernels import backends

    if options.backend not in ("auto", *backends.NAMES):
        parser.error(f"--backend is {options.backend!r}; needs auto, {', '.join(backends.NAMES)}")
    if options.least is not None and not 0 < options.least < 10:
        parser.error(f"--least is {options.least}; needs a share such as 0.05")
    if options.samples < 1:
        parser.error(f"--samples is {options.samples}; needs a number above 0")
    if options.cases is not None and not Path(options.cases).is_file():
        parser.error(f"--cases is {options.cases!r}, which is no file")
    try:
        return _static(options) if options.static else _timed(options)
    except (CheckoutError, RemoteError) as error:
        print(f"flashvl-bench gate: {error}", file=sys.stderr)
        return 2


def _timed(options: argparse.Namespace) -> int:
    from flashvl_bench.gate import verdict
    from flashvl_bench.gate.turns import Pair

    settings = settings_of(options)
    start = time.perf_counter()
    with _trees(options) as (base, head):
        built = time.perf_counter()
        pair = Pair(base, head, settings, _note)
        changes = verdict.decide(pair, options.least or LEAST)
    table(changes)
    end = time.perf_counter()
    if pair.apart and settings.warm:
        told = f"{len(pair.apart)} of {len(changes)} cases"
        print(f"noisier: {told} had arguments of their own on each side")
    print(f"built in {built - start:.0f} s, measured in {end - built:.0f} s")
    if not changes:
        print("flashvl-bench gate: neither ref has a case to measure", file=sys.stderr)
        return 2
    if options.json:
        write(pair.rows, settings, options.json)
    return _conclude(changes, options)


def settings_of(options: argparse.Namespace) -> Settings:
    """How the command line wants cases measured."""
    import torch

    from flashvl_bench.gate.turns import Settings

    return Settings(
        ops=options.op,
        dtypes=options.dtype,
        backend=options.backend,
        samples=options.samples,
        cases=None if options.cases is None else str(Path(options.cases).absolute()),
        warm=not options.cold,
        seconds=options.seconds,
        threads=options.threads or torch.get_num_threads(),
    )


@contextmanager
def _trees(options: argparse.Namespace) -> Iterator[Any]:
    from flashvl_bench.gate import checkouts

    refs = options.base, options.head
    with (
        tempfile.TemporaryDirectory(prefix="flashvl-gate-") as folder,
        checkouts.trees(
            Path(options.repository), refs, options.build, options.path, Path(folder), _note
        ) as found,
    ):
        yield found


def _note(text: str) -> None:
    print(f"gate      {text}", file=sys.stderr, flush=True)


def table(changes: list[Change]) -> None:
    """Print every case."""
    from flashvl_bench import compare, report

    lines = report.Table(compare.CHANGES)
    for change in changes:
        print(lines.row(compare.cells(change)))


def _conclude(changes: list[Change], options: argparse.Namespace) -> int:
    from flashvl_bench import compare

    text = "\n".join(compare.markdown(changes))
    print(f"\n{text.splitlines()[0]}")
    if options.markdown:
        Path(options.markdown).write_text(text + "\n", encoding="utf-8")
    return 1 if any(change.bad for change in changes) else 0


def write(found_rows: list[tuple[int, Measured]], settings: Settings, path: str) -> None:
    """The result file: every round of every pair of processes."""
    import statistics

    from flashvl_bench import machine, schema

    rows = []
    for processes, found in found_rows:
        status = next((each for each in found.status[::-1] if each != "ok"), "ok")
        rows.append(
            {
                "case": list(found.key), "processes": processes, "status": status,
                "reason": " / ".join(filter(None, found.reason)),
                "seconds": list(found.head), "base_seconds": list(found.base),
                "median": statistics.median(found.head) if found.head else None,
            }
        )  # fmt: skip
    document = {
        "schema": "flashvl-bench/gate",
        "version": schema.VERSION,
        "machine": asdict(machine.facts()),
        "settings": asdict(settings),
        "rows": rows,
    }
    schema.write(document, path)


def _static(options: argparse.Namespace) -> int:
    from flashvl_bench.gate import static

    return static.run(options, _trees)
