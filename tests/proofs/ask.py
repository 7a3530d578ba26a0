"""Asks sentryward about every case and writes answers.json, which the tests hold it to.

    nice python -m tests.proofs.ask                  # the cases that have no answer yet
    nice python -m tests.proofs.ask --again          # all of them: half an hour
    nice python -m tests.proofs.ask --undecided 300  # those without a decision, for 300 s each
    python -m tests.proofs.ask --table               # the table of docs/cuda.md

Three answers: "race_free"; what the tool does not support, in its own words; "no answer" in so many
seconds. One that came within `QUICK` seconds is asked for again in the tests.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.proofs import cases, sentry

ANSWERS = Path(__file__).with_name("answers.json")
SECONDS = 20
QUICK = 8.0
FREE, NONE = "race_free", "no answer in "


def answers() -> dict[str, dict[str, Any]]:
    """The recorded answers, by case."""
    found: dict[str, dict[str, Any]] = json.loads(ANSWERS.read_text())
    return found


def table() -> str:
    """The answers by kernel, in Markdown, as docs/cuda.md has them."""
    kernels: dict[str, Counter[str]] = {}
    for name, each in answers().items():
        kernels.setdefault(name.partition("<")[0], Counter())[each["answer"]] += 1
    lines = ["| kernel | cases | race free | undecided |", "|---|---|---|---|"]
    for kernel, counts in sorted(kernels.items()):
        free = counts.pop(FREE, 0)
        others = ", ".join(f"{words} ({n})" for words, n in sorted(counts.items()))
        lines.append(f"| `{kernel}` | {free + counts.total()} | {free} | {others} |")
    return "\n".join(lines) + "\n"


def answer(name: str, limit: int = SECONDS) -> dict[str, Any]:
    """One case asked for at most `limit` seconds: its answer, and whether it came quickly."""
    with tempfile.TemporaryDirectory() as folder:
        question = cases.question(name, Path(folder))
        start = time.monotonic()
        found = sentry.races(question, Path(folder), limit)
        seconds = time.monotonic() - start
    if found.result == "timeout":
        return {"answer": f"{NONE}{limit} s", "quick": False}
    words = found.result if found.result == FREE else f"{found.result}: {found.reason}"
    return {"answer": words, "quick": seconds < QUICK}


def main() -> int:
    """Ask, and write after each answer. Exit status 1 if a kernel may have a race."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--again", action="store_true", help="all cases")
    parser.add_argument("--undecided", type=int, metavar="SECONDS", help="those without an answer")
    parser.add_argument("--table", action="store_true", help="print the table and ask nothing")
    options = parser.parse_args()
    if options.table:
        print(table(), end="")
        return 0
    found = {} if options.again or not ANSWERS.exists() else answers()
    found = {name: found[name] for name in cases.CASES if name in found}
    for name in cases.CASES:
        undecided = name in found and found[name]["answer"].startswith(NONE)
        if name not in found or (options.undecided and undecided):
            found[name] = answer(name, options.undecided or SECONDS)
            print(f"{found[name]['answer']}  {name}", flush=True)
            lines = ",\n".join(f" {json.dumps(n)}: {json.dumps(a)}" for n, a in found.items())
            ANSWERS.write_text(f"{{\n{lines}\n}}\n")
    return int(any(each["answer"].startswith("potential_race") for each in found.values()))


if __name__ == "__main__":
    sys.exit(main())
