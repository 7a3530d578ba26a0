"""Kernels proven well synchronised and free of races, for all schedules of a launch and all
contents of its tensors (whole numbers that steer a kernel, such as lengths, have the sample's
values).

answers.json says what sentryward could decide, and in its own words what it could not
(`python -m tests.proofs.ask` writes it). Of every kernel one that takes seconds is asked about
again here: all of them would take a quarter of an hour.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.proofs import ask, cases, launches, sentry
from tests.proofs.ptx import Question

pytestmark = [
    pytest.mark.skipif(sentry.unavailable() is not None, reason=str(sentry.unavailable())),
    pytest.mark.timeout(300),
]

DOCUMENTATION = Path(__file__).resolve().parents[2] / "docs" / "cuda.md"
ANSWERS = ask.answers()
AGAIN = {name.partition("<")[0]: name for name, each in ANSWERS.items() if each["quick"]}


@pytest.mark.parametrize("name", AGAIN.values())
def test_the_recorded_answer_is_given_again(name: str, tmp_path: Path) -> None:
    found = sentry.races(cases.question(name, tmp_path), tmp_path, 10 * int(ask.QUICK))
    words = found.result if found.result == ask.FREE else f"{found.result}: {found.reason}"
    assert words == ANSWERS[name]["answer"]


def test_every_case_has_an_answer_and_none_is_a_race() -> None:
    assert set(ANSWERS) == set(cases.CASES), "run python -m tests.proofs.ask"
    known = (ask.FREE, "unsupported: ", ask.NONE)
    assert all(each["answer"].startswith(known) for each in ANSWERS.values())


def test_the_documentation_has_the_answers() -> None:
    assert ask.table() in DOCUMENTATION.read_text(), "paste python -m tests.proofs.ask --table"


def test_every_op_has_two_launches() -> None:
    for spec in launches.specs():
        assert sum(case[0] is spec for case in cases.CASES.values()) >= 2, spec.name


def block_row() -> str:
    """A launch in which warps share memory: the sum of a row over a block."""
    return next(name for name in cases.CASES if re.match(r"rms_norm_kernel<float, .*true>", name))


def test_a_missing_barrier_is_found(tmp_path: Path) -> None:
    asked = cases.question(block_row(), tmp_path)
    barrier = r"\tbarrier\.sync[^;]*;|\tbar\.sync[^;]*;"
    assert re.search(barrier, asked.ptx)
    broken = Question(re.sub(barrier, "", asked.ptx, count=1), asked.config, asked.fields)
    assert sentry.races(broken, tmp_path, 240).result == "potential_race"
