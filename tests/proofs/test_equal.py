"""Kernels proven equal to their references, and each proof refused when an index is wrong.

equal.json says which are proven, and of the others what sentryward says; `python -m
tests.proofs.equal` writes it. All of it is asked again here.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.proofs import equal, sentry

pytestmark = [
    pytest.mark.skipif(sentry.unavailable() is not None, reason=str(sentry.unavailable())),
    pytest.mark.timeout(180),
]

DOCUMENTATION = Path(__file__).resolve().parents[2] / "docs" / "cuda.md"
ANSWERS = equal.answers()
FAULTS = [
    (name, fault)
    for name, case in equal.CASES.items()
    if ANSWERS.get(name) == equal.PROVEN
    for fault in case.faults
]


def test_the_answers_are_of_the_cases() -> None:
    assert set(ANSWERS) == set(equal.CASES), "run python -m tests.proofs.equal"


@pytest.mark.parametrize("name", ANSWERS)
def test_the_recorded_answer_is_given_again(name: str, tmp_path: Path) -> None:
    assert equal.answer(equal.CASES[name], tmp_path) == ANSWERS[name]


@pytest.mark.parametrize(("name", "fault"), FAULTS)
def test_no_proof_survives_an_index_fault(name: str, fault: str, tmp_path: Path) -> None:
    answer = equal.answer(equal.CASES[name], tmp_path, fault)
    assert answer.startswith("equivalence_not_proven")


def test_the_documentation_has_the_answers() -> None:
    assert equal.table() in DOCUMENTATION.read_text(), "paste python -m tests.proofs.equal --table"


def test_every_proof_has_a_fault() -> None:
    assert {name for name, _ in FAULTS} == {n for n, a in ANSWERS.items() if a == equal.PROVEN}
