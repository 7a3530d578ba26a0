"""`flashvl-bench gate`: how often it is right on made-up machines, and whole runs on made-up
repositories."""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flashvl_bench import cli, schema
from flashvl_bench.gate import checkouts, side, trials, turns, verdict
from flashvl_bench.gate import cli as gate
from flashvl_bench.gate.verdict import Measured
from flashvl_bench.timing import Contender, Flat
from tests.bench.noise import CASES, SharedMachine, key

RUNS = 100


def bad(machine: SharedMachine) -> set[str]:
    return {change.key[0] for change in verdict.decide(machine) if change.bad}


def test_an_unchanged_head_raises_at_most_one_alarm_in_a_hundred_runs() -> None:
    assert sum(bool(bad(SharedMachine(seed))) for seed in range(RUNS)) <= 1


def test_a_tenth_more_time_in_one_op_is_found_in_95_runs_of_a_hundred() -> None:
    found = [bad(SharedMachine(RUNS + i, {i % CASES: 1.1})) for i in range(RUNS)]
    assert sum(f"op{i % CASES}" in each for i, each in enumerate(found)) >= 95
    others = [each - {f"op{i % CASES}"} for i, each in enumerate(found)]
    assert sum(map(bool, others)) <= 1


def test_the_made_up_machine_fools_who_measures_once() -> None:
    """Otherwise the two tests above prove nothing: one pair of processes, and every case above
    the least change told, is a false alarm in most runs."""
    alarms = 0
    for seed in range(30):
        once = SharedMachine(seed).measure(None)
        moves = [verdict.moved(each.base, each.head) for each in once.values()]
        alarms += any(each.by > np.log1p(verdict.LEAST) for each in moves)
    assert alarms >= 15


def test_a_run_measures_few_cases_again() -> None:
    """Forty cases, and on the average at most as many again: what the ten minutes allow."""
    again = [_again(SharedMachine(seed)) for seed in range(20)]
    assert np.mean(again) <= CASES


def _again(machine: SharedMachine) -> int:
    verdict.decide(machine)
    return sum(machine.asked) - CASES


def test_all_cases_slower_fail_and_those_beyond_the_limit_are_unconfirmed() -> None:
    changes = verdict.decide(SharedMachine(0, dict.fromkeys(range(CASES), 1.3)))
    counted = Counter(change.verdict for change in changes)
    assert counted["slower"] == verdict.MOST_SUSPECTS
    assert counted["unconfirmed"] == CASES - verdict.MOST_SUSPECTS


def test_the_interval_holds_the_planted_ratio() -> None:
    (change,) = [c for c in verdict.decide(SharedMachine(1, {3: 1.2})) if c.key == key(3)]
    assert change.verdict == "slower"
    assert change.low is not None and change.high is not None and change.ratio is not None
    assert 1 < change.low < 1.2 < change.high and change.low < change.ratio < change.high


def test_recorded_rounds_are_resampled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """trials --resample on ten recorded unchanged runs: the counts, and an exit status by them."""
    rows = []
    for i in range(10):
        machine = SharedMachine(900 + i)
        rows += [(100 * i + 1, measured) for measured in machine.measure(None).values()]
    file = str(tmp_path / "recorded.json")
    gate.write(rows, turns.Settings(), file)
    assert trials.main(["--resample", file, "--runs", "20"]) == 0
    assert "0 false alarms in 40 runs" in capsys.readouterr().out
    assert trials.main(["--resample", file, "--runs", "20", "--slower", "0.01"]) == 1
    assert "of 20 planted slowdowns of 1% caught" in capsys.readouterr().out


class Fixed:
    """A Meter with one case that has no times."""

    def __init__(self, base: str, head: str, rounds: int = 0) -> None:
        times = (1.0,) * rounds
        self.found = Measured(key(0), (base, head), ("b", "h"), times, times)

    def measure(self, keys: Any) -> dict[Any, Measured]:
        return {key(0): self.found}


@pytest.mark.parametrize(
    ("base", "head", "told", "fails"),
    [
        ("ok", "wrong", "broken", True),
        ("ok", "falls back", "broken", True),
        ("fails", "ok", "repaired", False),
        ("fails", "wrong", "unmeasured", False),
        ("ok", "absent", "gone", True),
        ("absent", "ok", "new", False),
        ("absent", "wrong", "new", False),
    ],
)
def test_cases_without_times(base: str, head: str, told: str, fails: bool) -> None:
    (change,) = verdict.decide(Fixed(base, head))
    assert (change.verdict, change.bad, change.ratio) == (told, fails, None)


def test_too_few_rounds_are_no_verdict() -> None:
    (change,) = verdict.decide(Fixed("ok", "ok", verdict.FEWEST_ROUNDS - 1))
    assert change.verdict == "too few rounds"


LIBRARY = """
import time
def kept(x):
    time.sleep(0.002)
    return x + x
def slow(x):
    time.sleep({slow})
    return x + x
def wrong(x):
    return x + x + {off}
def dies(x):
    import os
    os._exit({status}) if {status} else None
    return x + x
"""
CASES_FILE = """
import torch, made_up
from flashvl_bench.own import OwnCase
def cases():
    for name in ("kept", "slow", "wrong", "dies", "late", "early"):
        if hasattr(made_up, name):
            yield OwnCase(name, getattr(made_up, name), (torch.ones(64),), reference=double)
def double(x):
    return x * 2
"""
LATE = "def late(x):\n    return x + x\n"
EARLY = "def early(x):\n    return x + x\n"


def _git(folder: Path, *arguments: str) -> None:
    who = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True)


Commit = Callable[[dict[str, str]], None]


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[tuple[Path, Commit]]:
    """A git repository and a function that commits files into it; no worktree may be left over."""
    folder = tmp_path / "repository"
    folder.mkdir()
    _git(folder, "init", "--quiet")

    def commit(files: dict[str, str]) -> None:
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        _git(folder, "add", "--all")
        _git(folder, "commit", "--quiet", "--message", "m")

    yield folder, commit
    assert len(checkouts.git(folder, "worktree", "list").splitlines()) == 1


def _gate(folder: Path, *more: str) -> int:
    arguments = ["gate", "--repository", str(folder), "--base", "HEAD~1", "--build", "none"]
    return cli.main([*arguments, "--seconds", "0.05", "--threads", "1", *more])


def test_a_whole_run_on_another_repository(
    repository: tuple[Path, Commit], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real processes: what is twice as slow, wrong, dead, gone and new is told, and the exit
    status is 1."""
    monkeypatch.setattr(verdict, "MOST_PAIRS", 2)
    folder, commit = repository
    commit({"src/made_up.py": LIBRARY.format(slow=0.002, off=0, status=0) + EARLY})
    commit({"src/made_up.py": LIBRARY.format(slow=0.005, off=1, status=3) + LATE})
    cases, summary, result = (tmp_path / name for name in ("cases.py", "summary.md", "r.json"))
    cases.write_text(CASES_FILE)
    files = ["--cases", str(cases), "--markdown", str(summary), "--json", str(result)]
    assert _gate(folder, *files) == 1
    text = summary.read_text()
    for row in ("slow |  | fp32 |  | slower", "wrong |  | fp32 |  | broken | wrong: output 0"):
        assert f"| {row}" in text
    assert "| dies |  | fp32 |  | broken | fails: the process died with status 3" in text
    assert "| early |  | fp32 |  | gone" in text and "| late |  | fp32 |  | new" in text
    rows = {(r["case"][0], r["processes"]): r for r in schema.read(result)["rows"]}
    assert rows["slow", 1]["status"] == "ok" and len(rows["slow", 2]["seconds"]) >= 12
    assert rows["wrong", 1]["median"] is None and rows["dies", 1]["seconds"] == []


def test_arguments_that_the_sides_cannot_share_are_told(
    repository: tuple[Path, Commit],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Values drawn anew in each process: nothing can lie in the same memory."""
    monkeypatch.setattr(verdict, "MOST_PAIRS", 2)
    folder, commit = repository
    commit({"src/made_up.py": EARLY})
    commit({"src/made_up.py": EARLY + "\n"})
    for values, line in (("rand", "noisier: 1 of 1 cases"), ("ones", None)):
        cases = tmp_path / f"{values}.py"
        cases.write_text(CASES_FILE.replace("torch.ones", f"torch.{values}"))
        _gate(folder, "--cases", str(cases))
        shown = capsys.readouterr().out
        assert (line in shown) if line else ("noisier" not in shown), shown


def test_what_cannot_be_judged_is_an_error(
    repository: tuple[Path, Commit], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, commit = repository
    commit({"made_up.py": "x = 1\n"})
    commit({"made_up.py": "import no_such_module\n"})
    cases = tmp_path / "cases.py"
    cases.write_text(CASES_FILE)
    assert _gate(folder, "--cases", str(cases)) == 2
    assert "the head does not start: ModuleNotFoundError" in capsys.readouterr().err
    assert _gate(folder, "--head", "no-such-branch") == 2
    assert "'no-such-branch' is no commit" in capsys.readouterr().err
    assert _gate(folder, "--build", "echo no compiler; exit 3") == 2
    told = capsys.readouterr().err
    assert "the base does not build (status 3)" in told and "no compiler" in told
    arguments = ["gate", "--repository", str(folder), "--base", "HEAD~1"]
    assert cli.main(arguments) == 2
    assert "--build says how" in capsys.readouterr().err
    for arguments in (
        ["--least", "-1"],
        ["--samples", "0"],
        ["--cases", "absent.py"],
        ["--backend", "gpu"],
    ):
        with pytest.raises(SystemExit):
            _gate(folder, *arguments)
        assert f"{arguments[0]} is" in capsys.readouterr().err


def test_our_build_puts_each_library_into_its_side(repository: tuple[Path, Commit]) -> None:
    """One worktree goes from base to head, so unchanged files keep their time and are not compiled
    again."""
    folder, commit = repository
    builder = (
        "import os\ndef build(package):\n    package.mkdir(exist_ok=True)\n"
        "    times = [os.stat(n).st_mtime_ns for n in ('same.cpp', 'kernel.cpp')]\n"
        "    (package / 'library').write_text(f'{open(\"kernel.cpp\").read()} {times[0]}')\n"
    )
    commit({"tools/build_extension.py": builder, "kernel.cpp": "one", "same.cpp": ""})
    commit({"kernel.cpp": "two"})
    refs = ("HEAD~1", "HEAD")
    place = folder.parent / "trees"
    with checkouts.trees(folder, refs, None, (".", "model"), place, lambda _: None) as found:
        built = [(each.paths[0] / "flashvl_kernels" / "library").read_text() for each in found]
        assert [text.split()[0] for text in built] == ["one", "two"]
        assert built[0].split()[1] == built[1].split()[1]
        assert all(each.environment == {"FLASHVL_EXTENSION": ""} for each in found)
        assert [len(each.paths) for each in found] == [1, 1]


def test_a_planted_slowdown_takes_its_share() -> None:
    import time

    def run() -> None:
        until = time.perf_counter() + 0.01
        while time.perf_counter() < until:
            pass

    def once(function: Callable[[], None]) -> float:
        start = time.perf_counter()
        function()
        return time.perf_counter() - start

    slower = side.slowed(run, 0.5)
    assert min(once(slower) for _ in range(5)) >= 0.015


def _held(args: Flat) -> side.Side:
    asked = {"threads": 1, "slower": {}, "warm": True, "cases": None, "keys": []}
    held = side.Side(asked)
    held._hold(Contender("c", lambda *args: None), args)
    return held


def test_both_sides_work_on_the_same_memory() -> None:
    """Also of a view with strides of its own, and of arguments that are no tensors."""

    def made() -> Flat:
        wide = torch.arange(24.0).view(4, 6)
        return wide[1:, 1:4], 3, torch.ones(5, dtype=torch.bfloat16), torch.empty(0)

    args = made()
    lender, borrower = _held(args), _held(made())
    paths = lender.lend()["paths"]
    assert [path is None for path in paths] == [False, True, False, True]
    assert borrower.borrow(paths) == {"common": True}
    assert lender._held is not None and borrower._held is not None
    mine, theirs = lender._held.flat, borrower._held.flat
    assert torch.equal(theirs[0], args[0]) and theirs[0].stride() == args[0].stride()
    mine[0][2, 1] = -5
    assert theirs[0][2, 1] == -5 and args[0][2, 1] != -5, "memory of its own"
    other = _held((args[0] + 1, *args[1:]))
    assert other.borrow(paths) == {"common": False}, "other values are not replaced"
    assert other._held is not None and torch.equal(other._held.flat[0], args[0] + 1)
    lender._lent.close()  # type: ignore[union-attr]
    assert _held(args).borrow(paths) == {"common": False}, "the names are given up"
    assert theirs[0][2, 1] == -5, "the memory stays"


def test_too_little_memory_leaves_the_arguments_where_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: Any) -> None:
        raise OSError("no space")

    monkeypatch.setattr("os.posix_fallocate", full)
    args = (torch.ones(3),)
    held = _held(args)
    assert held.lend() == {"paths": None}
    assert held._held is not None and held._held.flat[0] is args[0]


def test_the_ops_of_this_package_are_cases() -> None:
    """At most three samples an op, cheap enough; forty in all."""
    cases = list(side.op_cases([], ["bf16"], "auto", 3))
    assert 30 <= len(cases) <= 50
    assert len({case.key for case in cases}) == len(cases)
    assert max(Counter(case.name for case in cases).values()) == 3
    assert list(side.op_cases(["of_another_version"], ["bf16"], "auto", 3)) == []


def test_cases_asked_for_by_key_are_the_same() -> None:
    """What a fresh pair of processes is given of the first one's keys; ops of another version have
    none."""
    some = [case.key for case in side.op_cases(["rms_norm", "swiglu"], ["bf16"], "cpu", 2)]
    unknown = ("of_another_version", "a", "bf16", "cpu")
    asked = [list(key) for key in (*some, unknown)]
    assert {case.key for case in side.named_cases(asked)} == set(some)
