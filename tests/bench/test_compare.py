"""`flashvl-bench compare` on made-up runs: what it tells, what it passes over, what it refuses."""

from __future__ import annotations

import copy
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flashvl_bench import cli, compare, schema

CASES = 40
ROUNDS = 30


def document(seed: int, slower: dict[int, float] | None = None, drift: float = 1.0) -> Any:
    """A run of CASES cases. Kernel and plain expression share each round's disturbance (a tenth)
    and have noise of their own (2 %); slower: factors on cases; drift: on the whole machine."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(CASES):
        shared = drift * 1e-3 * np.exp(rng.normal(0, 0.1, ROUNDS))
        own = shared * np.exp(rng.normal(0, 0.02, ROUNDS)) * (slower or {}).get(i, 1.0)
        plain = 2 * shared * np.exp(rng.normal(0, 0.02, ROUNDS))
        rows.append(
            {
                "op": f"op{i}", "sample": "s", "family": "", "dtype": "bf16", "asked": "cpu",
                "status": "ok", "reason": "", "backend": "cpu", "kernel": "k",
                "bytes_read": 1, "bytes_written": 1, "flops": 1,
                "seconds": own.tolist(), "plain_seconds": plain.tolist(),
                "median": float(np.median(own)), "iqr": 0.0,
                "plain_median": float(np.median(plain)), "bytes_per_second": 1.0,
                "flops_per_second": 1.0, "fraction": 0.5, "bound": "memory", "copies": 1,
                "swept": False, "launch": "", "plain_launch": "",
            }
        )  # fmt: skip
    made = {
        "schema": "flashvl-bench/ops",
        "version": schema.VERSION,
        "machine": {
            "cpu": "c", "cores": 2, "threads": 2, "cache_bytes": 1, "memory_bytes": 1,
            "system": "s", "python": "3", "torch": "2", "flashvl": "0", "cpu_level": "amx",
            "extension": "e", "date": "d", "gpu": None,
        },
        "settings": {
            "ops": [], "backends": [], "dtypes": ["bf16"], "quick": False, "warm": False,
            "budget": {"seconds": 1.0, "least": 5, "most": 200}, "allocator_keeps_memory": True,
            "device": "cpu", "families": [],
        },
        "ceilings": _ceilings(),
        "ceilings_end": _ceilings(),
        "rows": rows,
    }  # fmt: skip
    schema.validate(json.loads(json.dumps(made)))
    return made


def _ceilings() -> dict[str, Any]:
    return {
        "read": 1.0, "copy": 1.0, "gemm": {}, "threads": 2, "loops": {}, "torch_read": 1.0,
    }  # fmt: skip


def verdicts(before: Any, after: Any, **options: Any) -> Counter[str]:
    return Counter(change.verdict for change in compare.compare(before, after, **options))


def test_nothing_is_told_where_nothing_changed() -> None:
    """60 pairs of runs of 40 cases, with no least change to hide behind: 3 may raise an alarm by
    the 5 % of the interval, and 7 are too many once in 70 times."""
    alarms = 0
    for seed in range(60):
        found = verdicts(document(2 * seed), document(2 * seed + 1, drift=1.2), least=0.0)
        alarms += bool(found["slower"] or found["faster"])
    assert alarms <= 6


def test_a_tenth_more_time_is_told_and_nothing_else() -> None:
    for seed in range(10):
        after = document(2 * seed + 1, slower={3: 1.1, 7: 1 / 1.1}, drift=0.8)
        changes = compare.compare(document(2 * seed), after)
        told = {change.key[0]: change for change in changes if change.verdict != "same"}
        assert {op: change.verdict for op, change in told.items()} == {
            "op3": "slower",
            "op7": "faster",
        }
        slower = told["op3"]
        assert slower.low is not None and slower.high is not None and slower.ratio is not None
        assert 1 < slower.low < slower.ratio < slower.high
        assert slower.ratio == pytest.approx(1.1, abs=0.03)


def test_a_change_below_the_least_is_quiet() -> None:
    after = document(1, slower={3: 1.1})
    assert verdicts(document(0), after, least=0.2) == {"same": CASES}


def test_rows_without_times() -> None:
    before, after = document(0), document(1)
    for row, status in ((after["rows"][0], "wrong"), (before["rows"][1], "falls back")):
        row.update(status=status, reason="why", seconds=[], plain_seconds=[], median=None)
    for run in (before, after):
        run["rows"][2].update(status="fails", reason="why", seconds=[], median=None)
        run["rows"][3]["seconds"] = run["rows"][3]["seconds"][:2]
    before["rows"].pop(4)
    after["rows"].pop(5)  # op6: the list of `after` still has op4
    found = {change.key[0]: change for change in compare.compare(before, after)}
    told = {op: change.verdict for op, change in found.items() if change.verdict != "same"}
    assert told == {
        "op0": "broken", "op1": "repaired", "op2": "unmeasured", "op3": "too few rounds",
        "op4": "new", "op5": "gone",
    }  # fmt: skip
    assert [op for op, change in found.items() if change.bad] == ["op0", "op5"]
    assert found["op0"].reason == "wrong: why"


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("machine", "cpu", "another"),
        ("machine", "cpu_level", "avx2"),
        ("machine", "threads", 1),
        ("settings", "warm", True),
        ("settings", "budget", {"seconds": 2.0, "least": 5, "most": 200}),
    ],
)
def test_other_machines_and_ways_are_refused(part: str, name: str, value: Any) -> None:
    before, after = document(0), document(1)
    after[part][name] = value
    with pytest.raises(compare.CompareError, match=f"{part} differs in {name}"):
        compare.compare(before, after)


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str, str]:
    """Two runs alike, and one with a slow case."""
    names = []
    for i, slower in enumerate(({}, {}, {5: 1.3})):
        names.append(str(tmp_path / f"{i}.json"))
        schema.write(document(i, slower), names[-1])
    return names[0], names[1], names[2]


def test_command(
    files: tuple[str, str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, same, slow = files
    assert cli.main(["compare", before, same]) == 0
    assert f"{CASES} same" in capsys.readouterr().out
    summary = tmp_path / "summary.md"
    assert cli.main(["compare", before, slow, "--markdown", str(summary)]) == 1
    assert f"{CASES - 1} same, 1 slower" in capsys.readouterr().out
    text = summary.read_text()
    assert "**fails**" in text and text.count("| op5 | s | bf16 | cpu | slower | 1.") == 1
    assert "op6" not in text


def test_files_that_cannot_be_used(
    files: tuple[str, str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files[0]
    damaged = tmp_path / "damaged.json"
    whole = Path(before).read_text()
    model = copy.deepcopy(json.loads(whole))
    model["version"] = schema.VERSION - 1
    for text, told in (
        (whole[:-200], "is not JSON"),
        (json.dumps(model), "measure again"),
        ("[]", "not a result file"),
    ):
        damaged.write_text(text)
        assert cli.main(["compare", before, str(damaged)]) == 2
        assert told in capsys.readouterr().err
    assert cli.main(["compare", before, str(tmp_path / "absent.json")]) == 2
    assert "cannot be read" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["compare", before, before, "--least", "-1"])
