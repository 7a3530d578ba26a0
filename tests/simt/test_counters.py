"""tests/simt/counters.json is what the kernels do, and shows the gate a tensor that is read twice.

`python -m flashvl_kernels.simt.counters` writes the file anew; the difference belongs in review.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flashvl_bench import cli
from flashvl_bench.gate import static
from flashvl_kernels import simt
from flashvl_kernels.cuda import plan_module, resources
from flashvl_kernels.cuda.device import H100
from flashvl_kernels.simt import counters
from tests.bench.test_gate import Commit, repository  # noqa: F401  (a fixture)
from tests.simt.test_mutations import Fault, mutated

pytestmark = pytest.mark.skipif(simt.unavailable() is not None, reason=str(simt.unavailable()))

KEPT = json.loads(counters.FILE.read_text())
READ = "gate[v] = gates.template load_once<kVec>(first + v * step);"
TWICE = Fault("swiglu", "swiglu.cuh", READ, f"{READ}\n        {READ}", "", ())


def test_every_op_with_a_kernel_has_counters() -> None:
    assert set(KEPT) == {"device", *resources.ops()}
    assert KEPT["device"] == H100.name
    assert all(KEPT[op] for op in resources.ops())
    assert resources.dump(KEPT) == counters.FILE.read_text()
    assert str(counters.FILE.relative_to(resources.ROOT)) in static.BUDGETS


@pytest.mark.parametrize("op", resources.ops())
def test_the_counters_are_those_of_the_kernels(op: str) -> None:
    assert counters.measure(op) == KEPT[op], (
        f"{op} moves something else; if that is meant: python -m flashvl_kernels.simt.counters {op}"
    )


def test_a_call_counts_the_same_every_time() -> None:
    """In tensors of their own each time, of the op with the most branches on values."""
    assert counters.measure("argmax_head") == counters.measure("argmax_head")


def test_only_the_ops_named_are_written(tmp_path: Path) -> None:
    file = tmp_path / "counters.json"
    file.write_text(resources.dump({"device": "another", "swiglu": {}, "rms_norm": {"x": {}}}))
    assert counters.main(["swiglu"], file) == 0
    kept = json.loads(file.read_text())
    assert kept == {"device": H100.name, "swiglu": KEPT["swiglu"], "rms_norm": {"x": {}}}


def test_a_tensor_that_is_read_twice_fails_the_gate(
    repository: tuple[Path, Commit],  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """From the memory it comes once all the same; through the cache go four halves for three."""
    plan = plan_module("swiglu")
    assert plan is not None
    source, csrc = '#include "cuda/swiglu.cuh"', mutated(TWICE, tmp_path)
    built = simt.build(source, plan.instances(), "swiglu that reads its gates twice", csrc)
    changed = counters.measure("swiglu", built)
    folder, commit = repository
    file = str(counters.FILE.relative_to(resources.ROOT))
    commit({file: resources.dump(KEPT)})
    commit({file: resources.dump({**KEPT, "swiglu": changed})})
    found = static.differences(file, KEPT, {**KEPT, "swiglu": changed}, static.LEAST)
    worse = {(each.place, each.quantity) for each in found if each.bad}
    assert worse == {
        (f"swiglu, {call}", quantity)
        for call in changed
        for quantity in ("bytes_moved", "accesses", *(("narrow",) * (changed[call]["narrow"] > 0)))
    }
    for call, counts in changed.items():
        before = KEPT["swiglu"][call]
        assert counts["bytes_from_memory"] == before["bytes_from_memory"]
        assert counts["bytes_moved"] == pytest.approx(before["bytes_moved"] * 4 / 3, rel=0.05)
    gate = ["gate", "--static", "--repository", str(folder), "--base", "HEAD~1"]
    assert cli.main([*gate, "--no-instructions"]) == 1
    out = capsys.readouterr().out
    assert "swiglu" in out and "bytes_moved" in out and "worse" in out
    assert cli.main([*gate, "--no-instructions", "--head", "HEAD~1"]) == 0
