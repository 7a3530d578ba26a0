"""`flashvl-bench gate --static`: budgets of two commits, occupancy, and what callgrind counted."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from flashvl_bench import cli
from flashvl_bench.gate import instructions, static
from flashvl_bench.gate.turns import Settings, Tree
from flashvl_kernels import extension
from tests.bench.test_gate import Commit, repository  # noqa: F401  (a fixture)
from tests.slow import SLOW

CUDA = {"nvcc": "13.0", "op": {"sm_80": {"k<BF16>": [64, 0], "k<float>": [32, 1024]}}}
TRITON_KERNEL = {
    "warps": 4, "shared": 16384, "registers": 96, "spilled_bytes": 0, "wide": 8, "narrow": 2,
    "matrix": "mma.sync",
}  # fmt: skip
TRITON = {"triton": "3.8.0", "ops": {"op": {"s, bf16, sm_90": {"kernel": TRITON_KERNEL}}}}


def changed(**changes: Any) -> Any:
    return {**TRITON, "ops": {"op": {"s, bf16, sm_90": {"kernel": TRITON_KERNEL | changes}}}}


def bad(before: Any, after: Any, least: float = 0.02) -> set[str]:
    found = static.differences("f", before, after, least)
    return {each.quantity for each in found if each.bad}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, set()),
        ({"registers": 128}, {"registers", "occupancy"}),
        ({"registers": 97}, {"occupancy"}),  # the next unit of registers: a block less
        ({"registers": 95}, set()),
        ({"spilled_bytes": 4}, {"spilled_bytes"}),
        ({"shared": 65536}, {"shared", "occupancy"}),
        ({"wide": 4, "narrow": 6}, {"wide", "narrow"}),
        ({"registers": 64, "shared": 8192, "wide": 16}, set()),
        ({"warps": 2}, set()),
        ({"warps": 8}, {"occupancy"}),  # two blocks of 8 where there were five of 4
    ],
)
def test_what_got_worse_is_told(change: dict[str, int], told: set[str]) -> None:
    assert bad(TRITON, changed(**change)) == told


def test_pairs_are_registers_and_shared_memory() -> None:
    after = {**CUDA, "op": {"sm_80": {"k<BF16>": [72, 0], "k<float>": [32, 2048]}}}
    assert bad(CUDA, after) == {"registers", "shared"}
    assert bad(CUDA, after, least=0.2) == {"shared"}
    assert bad(after, CUDA) == set()


KERNEL = {"registers": 64, "shared": 384, "products": 4, "load": 16, "store": 8}
LAUNCH = {"threads": 256, "shared": 384, "blocks": 4, "warps": 32, "fraction": 0.5}
COUNTS = {"bytes_moved": 1000, "sector_efficiency": 0.9, "bank_conflicts": 0, "mma": 8}


@pytest.mark.parametrize(
    ("before", "change", "told"),
    [
        (KERNEL, {"load": 8}, {"load"}),
        (KERNEL, {"store": 16}, set()),
        (KERNEL, {"products": 8}, set()),
        (KERNEL, {"products": 0}, {"products"}),
        (LAUNCH, {"fraction": 0.25, "blocks": 2, "warps": 16}, {"fraction"}),
        (LAUNCH, {"fraction": 0.625, "blocks": 10, "warps": 40, "threads": 128}, set()),
        (COUNTS, {"bytes_moved": 1300}, {"bytes_moved"}),
        (COUNTS, {"bytes_moved": 900, "sector_efficiency": 0.99}, set()),
        (COUNTS, {"sector_efficiency": 0.5}, {"sector_efficiency"}),
        (COUNTS, {"bank_conflicts": 1}, {"bank_conflicts"}),
        (COUNTS, {"mma": 16}, {"mma"}),
        (COUNTS, {"mma": 0}, {"mma"}),
        ({**COUNTS, "mma": 0}, {"mma": 8}, set()),
    ],
)
def test_each_quantity_has_its_worse_side(
    before: dict[str, float], change: dict[str, float], told: set[str]
) -> None:
    assert bad({"op": {"k": before}}, {"op": {"k": before | change}}) == told


@pytest.mark.parametrize(
    ("arch", "registers", "shared", "warps", "share"),
    [
        ("sm_90", 32, 0, 8, 1.0),
        ("sm_90", 255, 0, 4, 8 / 64),  # 256 registers a thread: 8 warps
        ("sm_80", 128, 0, 4, 16 / 64),
        ("sm_86", 32, 49 * 1024, 4, 8 / 48),  # two blocks by their shared memory
        ("sm_89", 16, 0, 1, 24 / 48),  # 24 blocks at most
    ],
)
def test_occupancy(arch: str, registers: int, shared: int, warps: int, share: float) -> None:
    """By hand, from the table of compute capabilities."""
    assert static.occupancy(arch, registers, shared, warps) == pytest.approx(share)
    assert static.occupancy("gfx942", registers, shared, warps) is None


def _run(folder: Path, *more: str) -> int:
    arguments = ["gate", "--static", "--repository", str(folder), "--base", "HEAD~1"]
    return cli.main([*arguments, "--no-instructions", *more])


def test_budgets_of_two_commits(
    repository: tuple[Path, Commit],  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, commit = repository
    cuda, triton = static.BUDGETS[:2]
    commit({cuda: json.dumps(CUDA), triton: json.dumps(TRITON)})
    commit({triton: json.dumps(changed(registers=128))})
    summary = tmp_path / "summary.md"
    assert _run(folder, "--markdown", str(summary)) == 1
    text = summary.read_text()
    assert "**fails**" in text and "| registers | worse | 96 -> 128 |" in text
    assert "2 worse" in capsys.readouterr().out
    assert _run(folder, "--budget", cuda) == 0
    assert _run(folder, "--budget", "other.json") == 2
    assert "other.json is not in" in capsys.readouterr().err
    commit({triton: json.dumps({**changed(registers=200), "triton": "3.9.0"})})
    assert _run(folder) == 0
    assert "its numbers are not comparable" in capsys.readouterr().out
    commit({triton: "{"})
    assert _run(folder) == 2
    assert "is not JSON" in capsys.readouterr().err


def test_a_budget_that_is_gone_is_an_error(
    repository: tuple[Path, Commit],  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, commit = repository
    commit({static.BUDGETS[0]: json.dumps(CUDA), "x": "1"})
    (folder / static.BUDGETS[0]).unlink()
    commit({"x": "2"})
    assert _run(folder) == 2
    assert "is not in" in capsys.readouterr().err
    commit({"x": "3"})
    assert _run(folder) == 2
    assert "neither ref has a number" in capsys.readouterr().err


def test_counts_of_instructions_are_judged(
    repository: tuple[Path, Commit],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, commit = repository
    commit({"x": "1"})
    commit({"x": "2"})
    key = ("op", "s", "bf16", "auto")
    counts = {"base": 1000, "head": 1030}
    monkeypatch.setattr(instructions, "missing", lambda: None)
    monkeypatch.setattr(
        instructions, "count", lambda tree, _: {key: counts[tree.paths[0].resolve().name]}
    )
    arguments = ["gate", "--static", "--repository", str(folder), "--base", "HEAD~1"]
    arguments += ["--build", "none"]
    assert cli.main(arguments) == 1
    assert "1000 -> 1030" in capsys.readouterr().out
    assert cli.main([*arguments, "--least", "0.05"]) == 0
    monkeypatch.setattr(instructions, "missing", lambda: "valgrind is not on PATH")
    assert cli.main(arguments) == 2
    assert "instructions are not counted: valgrind" in capsys.readouterr().out


CALLGRIND = """# callgrind format
version: 1
desc: Trigger: Client Request: 3
positions: line
events: Ir

ob=(1) /lib/libc.so
fl=(1) ???
fn=(1) memcpy
0 70

ob=(2) /tmp/tree/libflashvl_kernels.so
fl=(1)
fn=(2) kernel
0 500
+3 25
cob=(1)
cfi=(1)
cfn=(1)
calls=2 0
0 70

totals: 595
"""


def test_a_callgrind_file_is_read() -> None:
    number, counts = instructions.read(CALLGRIND)
    assert number == 3
    assert counts == {"/lib/libc.so": 70, "/tmp/tree/libflashvl_kernels.so": 525}
    assert instructions.read("events: Ir\n")[0] is None


OWN_LIBRARY = "int work(int n) { volatile int x = 0; while (n--) x += n; return x; }"
OWN_CASES = """
import ctypes
from pathlib import Path
from flashvl_bench.own import OwnCase
library = ctypes.CDLL(str(Path({folder!r}) / "libwork.so"))
def cases():
    yield OwnCase("work", library.work, ({times},))
"""


def _only_if_asked() -> None:
    """Importing torch under callgrind takes minutes."""
    if not SLOW:
        pytest.skip("takes minutes; FLASHVL_SLOW_TESTS=1 runs it")


@pytest.mark.skipif(instructions.missing() is not None, reason=str(instructions.missing()))
@pytest.mark.timeout(3600)
def test_two_runs_of_one_tree_count_the_same() -> None:
    """Kernels of this checkout, to the instruction: with a tolerance, a gate would need a clock's
    statistics."""
    if not extension.EXTENSION.loaded:
        pytest.skip(extension.EXTENSION.reason)
    _only_if_asked()
    root = Path(__file__).resolve().parents[2]
    tree = Tree((root, root / "model"), {"FLASHVL_EXTENSION": str(extension.EXTENSION.path)})
    settings = Settings(ops=("rms_norm", "linear", "stitch_tiles"), samples=1)
    first, second = (instructions.count(tree, settings) for _ in range(2))
    assert {op for op, *_ in first} == set(settings.ops)
    assert min(first.values()) > 10_000
    assert first == second


@pytest.mark.skipif(instructions.missing() is not None, reason=str(instructions.missing()))
@pytest.mark.timeout(1800)
def test_valgrind_counts_twice_the_work_twice(tmp_path: Path) -> None:
    _only_if_asked()
    (tmp_path / "work.c").write_text(OWN_LIBRARY)
    command = ["cc", "-O1", "-shared", "-fPIC", "work.c", "-o", "libwork.so"]
    subprocess.run(command, cwd=tmp_path, check=True)
    found = []
    for times in (1000, 2000):
        cases = tmp_path / f"cases{times}.py"
        cases.write_text(OWN_CASES.format(folder=str(tmp_path), times=times))
        settings = Settings(cases=str(cases))
        (counted,) = instructions.count(Tree((tmp_path,)), settings).values()
        found.append(counted)
    assert found[0] >= 3000
    assert found[1] - found[0] == pytest.approx(found[0], rel=0.02)
