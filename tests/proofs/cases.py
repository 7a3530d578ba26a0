"""The cases: every kernel template at two launch shapes, and the question each of them is."""

from __future__ import annotations

from pathlib import Path

from tests.proofs import launches, ptx
from tests.proofs.ptx import Question

CASES = {
    name: (spec, prepared, launch)
    for spec in launches.specs()
    for name, (prepared, launch) in launches.smallest(spec).items()
}


def question(name: str, folder: Path) -> Question:
    """The proof obligation of a case; `folder` takes what is compiled for it."""
    spec, prepared, launch = CASES[name]
    text = ptx.compiled(spec.name, launch.kernel, ptx.ARCHITECTURE, folder)
    return ptx.question(text, launch, prepared)
