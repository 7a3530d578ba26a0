"""One side of a gate: a process that holds one checkout's kernels and makes calls when told to.

The code that measures is the same on both sides, that of the `flashvl-bench` in use; which kernels
it measures is decided by the search path it is started with (turns.py). Requests and answers are
those of peers/protocol.py, which turns.py starts first, so that a checkout that cannot be imported
answers with its error:

    cases                    the keys of all cases
    prepare case judge       its arguments, and whether it runs and is right; seconds of a call
    lend                     where the other side can map these arguments (shared.py)
    borrow paths             whether this side works on those arguments from now on
    turn calls               seconds of each of that many calls
"""

from __future__ import annotations

import gc
import importlib.util
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flashvl_bench import machine
from flashvl_bench.cases import Case, Judge, refusal, select
from flashvl_bench.gate.shared import Lent, borrowed
from flashvl_bench.own import OwnCase
from flashvl_bench.peers import protocol
from flashvl_bench.timing import Contender, Flat, Rotation, timed
from flashvl_kernels import backends, numerics
from flashvl_kernels.spec import REGISTRY

WARM_CALLS = 3
# Beyond this a case takes too long to be judged and timed among forty (AVX2: 0.3 s a call).
LARGEST_FLOPS = 25e9


@dataclass
class Prepared:
    """A case ready to be timed."""

    contender: Contender
    flat: Flat
    rotation: Rotation


class Ready(Exception):
    """Not an error: what `prepare` answers where a case cannot be timed."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


class OpCase:
    """A sample of an op of `flashvl_kernels`, on one backend."""

    def __init__(self, case: Case, asked: str) -> None:
        self._case, self._asked = case, asked
        self.key = (*case.name_parts, asked)
        self.name = case.spec.name

    def ready(self, judge: bool) -> tuple[Callable[..., Any], Flat]:
        """The function and its arguments. Ready where it would not run or is not right."""
        spec, flat = self._case.spec, self._case.flat()
        reason = refusal(spec, self._asked, flat)
        if reason is not None:
            raise Ready("falls back", reason)
        try:
            with backends.backend(self._asked):
                got = numerics.results(spec, spec.op, flat)
        except Exception as error:  # a kernel may raise anything; the answer says what
            raise Ready("fails", f"{type(error).__name__}: {error}") from error
        wrong = Judge(spec, flat).wrong(got) if judge else None
        if wrong is not None:
            raise Ready("wrong", wrong)
        return spec.op, flat

    def context(self) -> AbstractContextManager[Any]:
        """Entered around each call, outside of the timed part."""
        return backends.backend(self._asked)


class FileCase:
    """A case of a file of the user's."""

    def __init__(self, case: OwnCase) -> None:
        self._case = case
        self.key = (case.name, "", case.dtype, "")
        self.name = case.name

    def ready(self, judge: bool) -> tuple[Callable[..., Any], Flat]:
        """As of `OpCase`."""
        fault = self._case.fault() if judge else None
        if fault is not None:
            raise Ready(*fault)
        return self._case.run, self._case.args

    def context(self) -> AbstractContextManager[Any]:
        """Nothing to enter."""
        return nullcontext()


AnyCase = OpCase | FileCase


def op_cases(ops: list[str], dtypes: list[str], backend: str, samples: int) -> Iterator[AnyCase]:
    """The `samples` cheapest bench samples of each op; an op this checkout lacks has none."""
    known = [name for name in ops or sorted(REGISTRY) if name in REGISTRY]
    for name in known:
        for dtype in dtypes:
            found = []
            for case in select((name,), (dtype,)):
                cost = case.spec.cost(*case.flat())
                if cost.flops <= LARGEST_FLOPS:
                    found.append((cost.bytes + cost.flops / 100, len(found), case))
            yield from (OpCase(case, backend) for _, _, case in sorted(found)[:samples])


def named_cases(keys: list[list[str]]) -> Iterator[AnyCase]:
    """The cases of these keys that this checkout has. To choose the cheapest, `op_cases` builds the
    arguments of all: most of the time that a fresh process takes to start."""
    wanted = {tuple(key) for key in keys}
    for op, dtype in dict.fromkeys((key[0], key[2]) for key in keys):
        for case in select((op,), (dtype,)) if op in REGISTRY else ():
            for backend in (key[3] for key in wanted if key[:3] == case.name_parts):
                yield OpCase(case, backend)


def file_cases(path: str) -> Iterator[AnyCase]:
    """What `cases()` of the file yields."""
    spec = importlib.util.spec_from_file_location("flashvl_gate_cases", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"--cases is {path!r}; needs a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    if not hasattr(module, "cases"):
        raise ValueError(f"{path} has no function cases(); it yields the OwnCases to measure")
    return (FileCase(case) for case in module.cases())


def slowed(run: Callable[..., Any], share: float) -> Callable[..., Any]:
    """`run`, and then waiting on the clock for `share` of what it took: a planted slowdown."""

    def again(*args: Any) -> Any:
        start = time.perf_counter()
        result = run(*args)
        until = start + (1 + share) * (time.perf_counter() - start)
        while time.perf_counter() < until:
            pass
        return result

    return again


class Side:
    """Answers the requests."""

    def __init__(self, asked: dict[str, Any]) -> None:
        torch.set_num_threads(asked["threads"])
        machine.keep_freed_memory()
        self._slower: dict[str, float] = asked["slower"]
        self._warm: bool = asked["warm"]
        found: Iterator[AnyCase]
        if asked["cases"]:
            found = file_cases(str(Path(asked["cases"]).absolute()))
        elif asked["keys"] is not None:
            found = named_cases(asked["keys"])
        else:
            found = op_cases(*(asked[n] for n in ("ops", "dtypes", "backend", "samples")))
        self._cases = {case.key: case for case in found}
        self._held: Prepared | None = None
        self._lent: Lent | None = None

    def cases(self) -> dict[str, Any]:
        """All keys."""
        return {"cases": list(self._cases)}

    def prepare(self, case: list[str], judge: bool) -> dict[str, Any]:
        """Drop the case before, and hold this one."""
        self._held = None
        if self._lent is not None:
            self._lent.close()
            self._lent = None
        gc.collect()
        each = self._cases.get((case[0], case[1], case[2], case[3]))
        if each is None:
            return {"status": "absent", "reason": "", "seconds": 0.0}
        try:
            run, flat = each.ready(judge)
        except Ready as other:
            return {"status": other.status, "reason": other.reason, "seconds": 0.0}
        if each.name in self._slower:
            run = slowed(run, self._slower[each.name])
        self._hold(Contender(each.name, run, each.context), flat)
        return {"status": "ok", "reason": "", "seconds": min(self._calls(WARM_CALLS))}

    def lend(self) -> dict[str, Any]:
        """Move the held arguments to where the other side can map them; no paths where the system
        cannot, or where each call gets others anyway."""
        assert self._held is not None
        if not self._warm:
            return {"paths": None}
        try:
            self._lent = Lent(self._held.flat)
        except OSError:
            return {"paths": None}
        self._hold(self._held.contender, self._lent.flat)
        self._calls(WARM_CALLS)
        return {"paths": self._lent.paths}

    def borrow(self, paths: list[str | None]) -> dict[str, Any]:
        """Hold the other side's arguments, if they are the same as these; else these, in memory of
        the same kind."""
        assert self._held is not None
        try:
            flat = borrowed(self._held.flat, paths)
        except OSError:
            flat = None
        if flat is None:
            self.lend()
            return {"common": False}
        self._hold(self._held.contender, flat)
        self._calls(WARM_CALLS)
        return {"common": True}

    def _hold(self, contender: Contender, flat: Flat) -> None:
        cache = 0 if self._warm else machine.last_level_cache()
        self._held = Prepared(contender, flat, Rotation(flat, cache, self._warm))

    def turn(self, calls: int) -> dict[str, Any]:
        """Time the held case."""
        return {"seconds": self._calls(calls)}

    def _calls(self, calls: int) -> list[float]:
        assert self._held is not None
        gc.disable()
        try:
            with torch.no_grad():
                held = self._held
                return [timed(held.contender, held.rotation) for _ in range(calls)]
        finally:
            gc.enable()


def start() -> dict[str, protocol.Handler]:
    """What the client asked for on the command line."""
    side = Side(protocol.settings())
    return {
        "cases": side.cases, "prepare": side.prepare, "lend": side.lend, "borrow": side.borrow,
        "turn": side.turn,
    }  # fmt: skip
