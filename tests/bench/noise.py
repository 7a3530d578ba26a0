"""Made-up times of a shared machine, and a Meter that draws from them.

Worse than what we have seen on two shared cores: the whole machine drifts (a random walk) and jumps
(a neighbour comes and goes), single turns are hit by preemptions with a tail of infinite variance,
and each process runs each case a little faster or slower for as long as it lives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from flashvl_bench.compare import Key
from flashvl_bench.gate.verdict import Measured

CASES = 40
ROUNDS = 40


def key(i: int) -> Key:
    return f"op{i}", "s", "bf16", "auto"


@dataclass
class SharedMachine:
    """slower: factors on cases of the head. process: standard deviation of the logarithm of what a
    process adds to a case; turn: of a turn; hits: share of turns that are hit."""

    seed: int
    slower: dict[int, float] = field(default_factory=dict)
    process: float = 0.015
    turn: float = 0.04
    hits: float = 0.08
    cases: int = CASES
    rounds: int = ROUNDS
    pairs: int = 0
    asked: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(self.seed)

    def measure(self, keys: Sequence[Key] | None) -> Mapping[Key, Measured]:
        self.pairs += 1
        chosen = [key(i) for i in range(self.cases)] if keys is None else list(keys)
        self.asked.append(len(chosen))
        return {each: self._case(each) for each in chosen}

    def _case(self, each: Key) -> Measured:
        rng, turns = self._rng, 2 * self.rounds
        drift = np.cumsum(rng.normal(0, 0.01, turns))
        neighbour = 0.3 * (np.cumsum(rng.random(turns) < 0.05) % 2)
        own = rng.normal(0, self.turn, turns)
        hit = np.where(rng.random(turns) < self.hits, rng.pareto(1.5, turns), 0)
        logs = drift + neighbour + own + np.log1p(hit)
        order = np.array([(0, 1) if i % 2 == 0 else (1, 0) for i in range(self.rounds)]).ravel()
        base, head = logs[order == 0], logs[order == 1]
        base, head = base + rng.normal(0, self.process), head + rng.normal(0, self.process)
        head = head + np.log(self.slower.get(int(each[0].removeprefix("op")), 1.0))
        return Measured(each, base=tuple(np.exp(base)), head=tuple(np.exp(head)))
