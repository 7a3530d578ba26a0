"""Two sides of a gate taking turns: fresh processes for every measurement, the same arguments,
the same measuring code, the same memory (shared.py); only the kernels on the search path differ.

In each round both make the same number of calls, at least `TURN` long, one side right after the
other, the order alternating. A turn counts as its median call, so one preemption in it counts
nothing. Rounds end once they tell the ratio better than processes repeat it. Before a turn the
client rests: the threads of an idle OpenMP library spin for some milliseconds, on the cores the
other side is about to use. Both begin with the environment of steady.py.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import flashvl_bench
from flashvl_bench import steady
from flashvl_bench.compare import Key
from flashvl_bench.gate.verdict import PROCESS_SPREAD, Measured, moved
from flashvl_bench.remote import REST, Remote, RemoteError

TURN = 0.02  # seconds of a turn at least, where calls are shorter
MOST_CALLS = 64
SIDES = "the base", "the head"
_SERVER = """
from flashvl_bench.peers import protocol
def start():
    from flashvl_bench.gate import side
    return side.start()
protocol.serve(start)
"""
FEWEST_ROUNDS, MOST_ROUNDS = 12, 60
LOOK = 4  # rounds from one look at the error to the next
ENOUGH = PROCESS_SPREAD / 3  # standard error of the ratio


@dataclass(frozen=True)
class Settings:
    """What is measured. seconds: of a case at most, both sides together; warm: the same arguments
    in every call; cases: a file of OwnCases, else the samples of the ops; slower: planted, {op or
    case: share of its time}, in the head."""

    ops: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ("bf16",)
    backend: str = "auto"
    samples: int = 3
    cases: str | None = None
    warm: bool = True
    seconds: float = 2.0
    threads: int = 1
    slower: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Tree:
    """A checkout that is ready to be imported: its folders in the order of the search path, and
    variables of the environment."""

    paths: tuple[Path, ...]
    environment: dict[str, str] = field(default_factory=dict)


class Pair:
    """A Meter on two trees. note: told what is being measured."""

    def __init__(
        self,
        base: Tree,
        head: Tree,
        settings: Settings,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._trees = base, head
        self._settings = settings
        self._note = note
        self._taken = 0
        self.rows: list[tuple[int, Measured]] = []
        self.apart: set[Key] = set()  # cases whose arguments the sides did not share

    def measure(self, keys: Sequence[Key] | None) -> dict[Key, Measured]:
        """Start both sides, measure these cases, end both. A side that dies in a case is started
        again for the next one."""
        first = self._taken == 0
        self._taken += 1
        found: dict[Key, Measured] = {}
        with tempfile.TemporaryDirectory(prefix="flashvl-gate-") as folder:
            tools = Path(folder)
            link_tools(tools)
            while keys is None or len(found) < len(keys):
                with ExitStack() as stack:
                    sides = self._open(stack, tools, keys)
                    keys = _all_keys(sides) if keys is None else keys
                    for key in keys[len(found) :]:
                        self._note(f"{key[0]} [{key[1]}]: {len(found) + 1} of {len(keys)}")
                        try:
                            found[key] = self._case(key, sides, judge=first)
                        except Died as died:
                            found[key] = died.measured(key)
                            break
                if not keys:
                    break
        self.rows += [(self._taken, each) for each in found.values()]
        return found

    def _open(self, stack: ExitStack, tools: Path, keys: Sequence[Key] | None) -> list[Remote]:
        with ThreadPoolExecutor(2) as pool:
            started = [pool.submit(self._start, i, tools, keys) for i in (0, 1)]
        errors = [each.exception() for each in started]
        for each, error in zip(started, errors, strict=True):
            if error is None:
                stack.enter_context(each.result())
        for error in errors:
            if error is not None:
                raise error
        return [each.result() for each in started]

    def _start(self, i: int, tools: Path, keys: Sequence[Key] | None) -> Remote:
        s, tree = self._settings, self._trees[i]
        asked = {
            "ops": s.ops, "dtypes": s.dtypes, "backend": s.backend, "samples": s.samples,
            "cases": s.cases, "warm": s.warm, "threads": s.threads, "keys": keys,
            "slower": s.slower if i == 1 else {},
        }  # fmt: skip
        paths = os.pathsep.join(str(path) for path in (*tree.paths, tools))
        environment = {
            **steady.MALLOC, **steady.THREADS, **tree.environment,
            "PYTHONPATH": paths, "OMP_NUM_THREADS": str(s.threads),
        }  # fmt: skip
        try:
            return Remote("gate", asked, [sys.executable, "-P", "-c", _SERVER], environment)
        except RemoteError as error:
            raise RemoteError(f"{SIDES[i]} does not start: {error}") from error

    def _case(self, key: Key, sides: Sequence[Remote], judge: bool) -> Measured:
        # One after the other: their threads, bound to the same cores, spin where they wait.
        ready = [_ask(i, sides[i], "prepare", case=key, judge=judge) for i in (0, 1)]
        status = ready[0]["status"], ready[1]["status"]
        reason = ready[0]["reason"], ready[1]["reason"]
        if status != ("ok", "ok"):
            return Measured(key, status, reason)
        paths = _ask(0, sides[0], "lend")["paths"]
        if paths is None or not _ask(1, sides[1], "borrow", paths=paths)["common"]:
            self.apart.add(key)
        once = max(float(each["seconds"]) for each in ready)
        calls = min(max(round(TURN / once), 1), MOST_CALLS)
        rounds = round(self._settings.seconds / (2 * calls * once))
        times: tuple[list[float], list[float]] = [], []
        for turn in range(min(max(rounds, FEWEST_ROUNDS), MOST_ROUNDS)):
            if turn >= FEWEST_ROUNDS and turn % LOOK == 0 and moved(*times).error < ENOUGH:
                break
            for i in (0, 1) if turn % 2 == 0 else (1, 0):
                time.sleep(REST)
                took = _ask(i, sides[i], "turn", calls=calls)["seconds"]
                times[i].append(statistics.median(took))
        return Measured(key, status, reason, tuple(times[0]), tuple(times[1]))


class Died(Exception):
    """A side ended in the middle of a case."""

    def __init__(self, side: int, reason: str) -> None:
        super().__init__(reason)
        self.side, self.reason = side, reason

    def measured(self, key: Key) -> Measured:
        """The case without times."""
        status, reason = ("ok", "fails"), ("", f"the process {self.reason}")
        return Measured(key, *((status, reason) if self.side else (status[::-1], reason[::-1])))


def _ask(i: int, side: Remote, do: str, **arguments: Any) -> dict[str, Any]:
    try:
        return side.ask(do, **arguments)
    except RemoteError as error:
        raise Died(i, str(error)) from error


def _all_keys(sides: Sequence[Remote]) -> list[Key]:
    """The cases of the head, then those of the base alone."""
    answers = [[_key(k) for k in side.ask("cases")["cases"]] for side in sides]
    return list(dict.fromkeys([*answers[1], *answers[0]]))


def _key(parts: Any) -> Key:
    return parts[0], parts[1], parts[2], parts[3]


def link_tools(folder: Path) -> None:
    """Make the flashvl_bench in use, and the flashvl_kernels it needs where a tree has none,
    importable from `folder`, last on the path."""
    import flashvl_kernels

    for package in (flashvl_bench, flashvl_kernels):
        found = Path(str(package.__file__)).parent
        (folder / package.__name__).symlink_to(found, target_is_directory=True)
