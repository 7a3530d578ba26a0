"""Every kernel template at two launch shapes: proven well synchronised and free of races.

For all schedules of the launch and all contents of its tensors (whole numbers that steer a kernel,
such as lengths, have the sample's values). What sentryward does not support is in a table, with its
own word for it; an entry it can decide after all must go.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.proofs import launches, ptx, sentry
from tests.proofs.ptx import Question

pytestmark = [
    pytest.mark.skipif(sentry.unavailable() is not None, reason=str(sentry.unavailable())),
    pytest.mark.timeout(300),
]

ARCHITECTURE = 80
"""Its PTX has every instruction the kernels use."""

UNSUPPORTED: dict[str, str] = {}
"""Pattern of kernel and launch, and the tool's own reason."""

CASES = {
    name: (spec, prepared, launch)
    for spec in launches.specs()
    for name, (prepared, launch) in launches.smallest(spec).items()
}


def question(name: str, folder: Path) -> Question:
    spec, prepared, launch = CASES[name]
    text = ptx.compiled(spec.name, launch.kernel, ARCHITECTURE, folder)
    return ptx.question(text, launch, prepared)


@pytest.mark.parametrize("name", CASES)
def test_no_schedule_has_a_race(name: str, tmp_path: Path) -> None:
    found = sentry.races(question(name, tmp_path), tmp_path)
    reason = next((why for key, why in UNSUPPORTED.items() if re.fullmatch(key, name)), None)
    if reason is None:
        assert found.result == "race_free", found
    else:
        assert (found.result, found.reason) == ("unsupported", reason)


def test_every_op_has_two_launches() -> None:
    for spec in launches.specs():
        assert sum(case[0] is spec for case in CASES.values()) >= 2, spec.name


def block_row() -> str:
    """A launch in which warps share memory: the sum of a row over a block."""
    return next(name for name in CASES if re.match(r"rms_norm_kernel<float, .*true>", name))


def test_a_missing_barrier_is_found(tmp_path: Path) -> None:
    asked = question(block_row(), tmp_path)
    barrier = r"\tbarrier\.sync[^;]*;|\tbar\.sync[^;]*;"
    assert re.search(barrier, asked.ptx)
    broken = Question(re.sub(barrier, "", asked.ptx, count=1), asked.config, asked.fields)
    assert sentry.races(broken, tmp_path).result == "potential_race"
