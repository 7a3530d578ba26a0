"""How often the gate is right on this machine: runs of a checkout against itself, as it is and with
a planted slowdown.

    python -m flashvl_bench.gate.trials --runs 10                     # 10 of each, for real: hours
    python -m flashvl_bench.gate.trials --runs 10 --record a.json     # and keep every round
    python -m flashvl_bench.gate.trials --resample a.json --runs 100  # 100 of each from those

The slowdown is planted in one op, another one in each run: after each call the process of the head
waits on the clock until `--slower` (0.1) of what the call took has passed again. To the gate that
is a kernel that does a tenth of its work twice; no source is edited, and it scales with whatever
noise the call met. A run counts as caught if a case of that op is told slower, and as a false alarm
if anything else is.

A resampled run takes for each pair of processes one that was recorded unchanged, its sides swapped
or not, and draws its rounds in blocks, since what disturbs one round disturbs its neighbours.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from flashvl_bench import schema
from flashvl_bench.compare import Change, Key
from flashvl_bench.gate import cli as gate
from flashvl_bench.gate import verdict
from flashvl_bench.gate.turns import Pair, Settings, Tree
from flashvl_bench.gate.verdict import Measured, Meter

BLOCK = 4  # rounds that stay together


class Recorded:
    """A Meter that draws from recorded pairs of processes of an unchanged checkout."""

    def __init__(
        self, rows: Sequence[dict[str, Any]], rng: np.random.Generator, slower: dict[Key, float]
    ) -> None:
        self._rng = rng
        self._slower = slower
        self._times: dict[Key, list[np.ndarray]] = {}
        for row in rows:
            if row["status"] == "ok":
                times = np.log([row["base_seconds"], row["seconds"]])
                self._times.setdefault(_key(row), []).append(times)

    @property
    def keys(self) -> list[Key]:
        """The cases with times."""
        return list(self._times)

    def measure(self, keys: Sequence[Key] | None) -> dict[Key, Measured]:
        return {key: self._drawn(key) for key in keys or self.keys}

    def _drawn(self, key: Key) -> Measured:
        rng, pairs = self._rng, self._times[key]
        sides = pairs[rng.integers(len(pairs))]
        sides = sides[::-1] if rng.random() < 0.5 else sides
        rounds = sides.shape[1]
        starts = rng.integers(max(rounds - BLOCK, 0) + 1, size=-(-rounds // BLOCK))
        taken = (starts[:, None] + np.arange(min(BLOCK, rounds))).ravel()[:rounds]
        base, head = np.exp(sides[:, taken])
        return Measured(key, base=tuple(base), head=tuple(head * self._slower.get(key, 1.0)))


def _key(row: dict[str, Any]) -> Key:
    op, sample, dtype, backend = row["case"]
    return op, sample, dtype, backend


Run = Callable[[str, int], list[Change]]  # (op to slow down or "", number of the run)


def count(
    run: Run, ops: Sequence[str], runs: int, note: Callable[[str], None], first: int = 0
) -> tuple[int, int]:
    """False alarms of `runs` unchanged runs and of as many with a planted slowdown, in runs; and
    in how many of the latter it was caught. first: the number of the first run."""
    alarms = caught = 0
    for i in range(first, first + runs):
        told = {change.key[0] for change in run("", i) if change.bad}
        alarms += bool(told)
        note(f"unchanged run {i + 1}: {', '.join(sorted(told)) or 'quiet'}")
        op = ops[i % len(ops)]
        told = {change.key[0] for change in run(op, i) if change.bad}
        caught += op in told
        alarms += bool(told - {op})
        note(f"run {i + 1} with {op} slowed: told {', '.join(sorted(told)) or 'nothing'}")
    return alarms, caught


def resampled(path: str, slower: float) -> tuple[Run, list[str]]:
    """Runs from a recorded file, and its ops."""
    rows = schema.read(path)["rows"]
    ops = sorted({row["case"][0] for row in rows if row["status"] == "ok"})

    def run(op: str, i: int) -> list[Change]:
        rng = np.random.default_rng([i, bool(op)])
        key = next((k for k in Recorded(rows, rng, {}).keys if k[0] == op), None)
        planted = {} if key is None else {key: 1 + slower}
        meter: Meter = Recorded(rows, rng, planted)
        return verdict.decide(meter)

    return run, ops


def real(settings: Settings, slower: float, record: str | None) -> Run:
    """Real runs of the checkout in use; what they measure unchanged is written to `record` as each
    of them ends."""
    import flashvl_kernels

    tree = Tree((Path(flashvl_kernels.__file__).parents[1],))
    rows: list[tuple[int, Measured]] = []

    def run(op: str, i: int) -> list[Change]:
        start = time.perf_counter()
        asked = Settings(**{**vars(settings), "slower": {op: slower} if op else {}})
        pair = Pair(tree, tree, asked)
        changes = verdict.decide(pair)
        if not op:
            rows.extend((100 * i + processes, found) for processes, found in pair.rows)
            if record:
                gate.write(rows, settings, record)
        print(f"trials    {len(changes)} cases in {time.perf_counter() - start:.0f} s", flush=True)
        return changes

    return run


def main(argv: Sequence[str] | None = None) -> int:
    """Print the counts. Exit status 1 above one false alarm in a hundred runs (none in fewer), or
    below 95 slowdowns caught in a hundred."""
    parser = argparse.ArgumentParser(
        prog="python -m flashvl_bench.gate.trials",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--runs", type=int, default=10, help="of each kind (default: 10)")
    parser.add_argument("--first", type=int, default=0, help="number of the first run (default: 0)")
    parser.add_argument("--slower", type=float, default=0.1, help="planted (default: 0.1)")
    parser.add_argument("--resample", metavar="FILE.json", help="recorded rounds, not real runs")
    parser.add_argument("--record", metavar="FILE.json", help="write the rounds of unchanged runs")
    parser.add_argument("--op", default="", help="ops, by commas (default: all)")
    parser.add_argument("--seconds", type=float, default=Settings.seconds, help="of a case")
    options = parser.parse_args(argv)
    import torch

    named = tuple(word for word in options.op.split(",") if word)
    settings = Settings(ops=named, seconds=options.seconds, threads=torch.get_num_threads())
    if options.resample:
        run, ops = resampled(options.resample, options.slower)
    else:
        from flashvl_kernels.spec import REGISTRY

        run, ops = real(settings, options.slower, options.record), list(named or sorted(REGISTRY))
    note = partial(print, flush=True)
    alarms, caught = count(run, ops, options.runs, note, options.first)
    print(
        f"{alarms} false alarms in {2 * options.runs} runs; "
        f"{caught} of {options.runs} planted slowdowns of {options.slower:.0%} caught"
    )
    return 1 if alarms > 2 * options.runs // 100 or caught < 0.95 * options.runs else 0


if __name__ == "__main__":
    sys.exit(main())
