"""`flashvl-bench gate --static`: what two refs differ in that no noise can hide.

Machine code: the numbers a repository keeps in JSON beside its tests (here the budgets of
tests/aot, which tests hold to what the compilers give, and tests/simt/counters.json, what the
kernels move when executed), as they are in both refs; nothing is compiled. Where an entry has
registers, shared memory and warps of a known architecture, its occupancy is computed and compared
too. CPU kernels: instructions (instructions.py).

The numbers are exact, so a change counts as soon as it exceeds `--least` (0.02), and a spill counts
in any case.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flashvl_bench import report
from flashvl_bench.gate import checkouts

LEAST = 0.02
BUDGETS = ("tests/aot/budget.json", "tests/aot/triton_budget.json", "tests/simt/counters.json")
# Columns of a list that stands for one kernel: [registers, shared bytes].
PAIR = ("registers", "shared")
# "load" and "store" are the widest accesses in bytes, "fraction" that of the warps that fit.
MORE_IS_BETTER = ("wide", "load", "store", "occupancy", "fraction", "sector_efficiency")
NEUTRAL = ("warps", "threads", "blocks", "products")
# Of a kernel that multiplies matrices: in its code, and executed. None left is the one bad change
# of the first, which is otherwise a matter of unrolling.
ON_TENSOR_CORES = ("products", "mma")
NOT_AT_ALL = ("spilled_bytes", "stack_bytes", "bank_conflicts")  # any more of it is bad

Trees = Callable[[argparse.Namespace], AbstractContextManager[Any]]
Place = tuple[str, ...]


@dataclass(frozen=True)
class Multiprocessor:
    """Warps and blocks it holds, and bytes of its shared memory. NVIDIA's CUDA C++ Programming
    Guide, table of compute capabilities; all have 65536 registers."""

    warps: int
    blocks: int
    shared: int


KIB = 1024
MULTIPROCESSORS = {
    "sm_80": Multiprocessor(64, 32, 164 * KIB),
    "sm_86": Multiprocessor(48, 16, 100 * KIB),
    "sm_89": Multiprocessor(48, 24, 100 * KIB),
    "sm_90": Multiprocessor(64, 32, 228 * KIB),
    "sm_100": Multiprocessor(64, 32, 228 * KIB),
    "sm_120": Multiprocessor(48, 32, 100 * KIB),
}
REGISTERS = 65536
REGISTER_UNIT = 256  # a warp's registers are handed out in units of this
BLOCK_SHARED = 1024  # bytes the system takes of each block


@dataclass(frozen=True)
class Difference:
    """One number of both refs. verdict: "worse", "better", "changed", "same", "new" or "gone"."""

    source: str
    place: str
    quantity: str
    before: float | None
    after: float | None
    verdict: str

    @property
    def bad(self) -> bool:
        """It fails the gate. A kernel that is gone does not: the commit says so itself."""
        return self.verdict == "worse"


def occupancy(arch: str, registers: int, shared: int, warps: int) -> float | None:
    """Resident warps over those a multiprocessor holds; None for an architecture not known."""
    chip = MULTIPROCESSORS.get(arch)
    if chip is None or warps < 1:
        return None
    per_warp = max(-(-registers * 32 // REGISTER_UNIT), 1) * REGISTER_UNIT
    blocks = min(
        REGISTERS // per_warp // warps,
        chip.warps // warps,
        chip.blocks,
        chip.shared // (shared + BLOCK_SHARED),
    )
    return blocks * warps / chip.warps


def numbers(value: Any, place: Place = ()) -> Iterator[tuple[Place, float]]:
    """Every number of a JSON value with the keys that lead to it, occupancies among them."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return
    if isinstance(value, int | float):
        yield place, float(value)
    elif isinstance(value, list):
        names = PAIR if len(value) == len(PAIR) else tuple(map(str, range(len(value))))
        for name, each in zip(names, value, strict=True):
            yield from numbers(each, (*place, name))
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from numbers(each, (*place, key))
        if {"registers", "shared", "warps"} <= set(value):
            arch = re.search(r"sm_\d+", " ".join(place))
            shares = (int(value[name]) for name in ("registers", "shared", "warps"))
            found = occupancy(arch[0] if arch else "", *shares)
            if found is not None:
                yield (*place, "occupancy"), found


def compilers(value: Any) -> dict[str, str]:
    """The words at the top of a budget: with which compiler it was made."""
    entries = value.items() if isinstance(value, dict) else ()
    return {key: each for key, each in entries if isinstance(each, str)}


def differences(source: str, before: Any, after: Any, least: float) -> list[Difference]:
    """Of two budgets."""
    old, new = dict(numbers(before)), dict(numbers(after))
    found = []
    for place in dict.fromkeys([*old, *new]):
        *where, quantity = place
        a, b = old.get(place), new.get(place)
        verdict = judged(quantity, a, b, least)
        found.append(Difference(source, ", ".join(where), quantity, a, b, verdict))
    return found


def judged(quantity: str, before: float | None, after: float | None, least: float) -> str:
    """The verdict on one number."""
    if before is None or after is None:
        return "new" if before is None else "gone"
    if before == after:
        return "same"
    if quantity in ON_TENSOR_CORES and 0 in (before, after):
        return "worse" if after == 0 else "better"
    if quantity in NEUTRAL:
        return "changed"
    a, b = (after, before) if quantity in MORE_IS_BETTER else (before, after)
    if quantity in NOT_AT_ALL or min(a, b) <= 0:
        return "worse" if b > a else "better"
    if max(a, b) / min(a, b) <= 1 + least:
        return "changed"
    return "worse" if b > a else "better"


def budgets(
    repository: Path, refs: Sequence[str], files: Sequence[str], asked: bool, least: float
) -> list[Difference]:
    """The differences of all budget files. asked: by name, so a file must be there in both refs."""
    found: list[Difference] = []
    for file in files:
        both = [_budget(repository, ref, file) for ref in refs]
        if None in both:
            if asked or both[0] is not None:
                raise checkouts.CheckoutError(f"{file} is not in {refs[both.index(None)]}")
            continue
        a, b = (compilers(each) for each in both)
        if a != b:
            print(f"static    {file}: made with {a} and {b}; its numbers are not comparable")
            continue
        found += differences(file, both[0], both[1], least)
    return found


def _budget(repository: Path, ref: str, file: str) -> Any:
    if not checkouts.git(repository, "ls-tree", "--name-only", ref, "--", file):
        return None
    try:
        return json.loads(checkouts.git(repository, "show", f"{ref}:{file}"))
    except ValueError as error:
        raise checkouts.CheckoutError(f"{file} of {ref} is not JSON: {error}") from error


def executed(options: argparse.Namespace, trees: Trees, least: float) -> list[Difference]:
    """The instructions of both refs' CPU kernels."""
    from flashvl_bench.gate import instructions
    from flashvl_bench.gate.cli import settings_of

    with trees(options) as sides:
        counts = [instructions.count(side, settings_of(options)) for side in sides]
    found = []
    for key in dict.fromkeys([*counts[0], *counts[1]]):
        a, b = (each.get(key) for each in counts)
        place = " ".join(filter(None, key))
        verdict = judged("instructions", a, b, least)
        found.append(Difference("valgrind", place, "instructions", a, b, verdict))
    return found


COLUMNS: report.Columns = (
    ("source", 28), ("kernel", 60), ("quantity", 14), ("verdict", 8), ("before -> after", 16),
)  # fmt: skip


def cells(each: Difference) -> list[str]:
    """A row of the table."""
    sizes = " -> ".join("none" if x is None else f"{x:.6g}" for x in (each.before, each.after))
    return [each.source, each.place, each.quantity, each.verdict, sizes]


def markdown(found: Sequence[Difference]) -> Iterator[str]:
    """A summary for a pull request."""
    verdicts = dict.fromkeys(each.verdict for each in found)
    counted = [f"{sum(e.verdict == v for e in found)} {v}" for v in verdicts]
    fails = any(each.bad for each in found)
    verdict = "**fails**" if fails else "passes"
    yield f"**flashvl-bench, deterministic:** {', '.join(counted) or 'nothing'}; {verdict}."
    shown = sorted((e for e in found if e.verdict != "same"), key=lambda e: (not e.bad, e.place))
    if not shown:
        return
    yield ""
    yield "| source | kernel | quantity | verdict | before -> after |"
    yield "|---|---|---|---|---|"
    for each in shown:
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells(each)) + " |"


def run(options: argparse.Namespace, trees: Trees) -> int:
    """The command line. Exit status 0, 1 if a number is worse, 2 if there is none to compare."""
    from flashvl_bench.gate import instructions

    least = options.least or LEAST
    repository = Path(options.repository)
    refs = [checkouts.commit(repository, ref) for ref in (options.base, options.head)]
    files = tuple(options.budget or BUDGETS)
    found = budgets(repository, refs, files, bool(options.budget), least)
    if not options.no_instructions:
        reason = instructions.missing()
        if reason is None:
            found += executed(options, trees, least)
        else:
            print(f"static    instructions are not counted: {reason}")
    if not found:
        print("flashvl-bench gate: neither ref has a number to compare", file=sys.stderr)
        return 2
    table = report.Table(COLUMNS)
    for each in found:
        if each.verdict != "same":
            print(table.row(cells(each)))
    text = "\n".join(markdown(found))
    print(f"\n{text.splitlines()[0]}")
    if options.markdown:
        Path(options.markdown).write_text(text + "\n", encoding="utf-8")
    return 1 if any(each.bad for each in found) else 0
