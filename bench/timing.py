"""Interleaved timing of several functions on the same arguments, with a cold cache.

The contenders take turns in every round, and the order rotates, so that whatever else the machine
does meets all of them alike. Between two uses of the same memory at least twice the last-level
cache is read, so that arguments come from memory as they do inside a model; the results a call
allocates are its own affair. What takes the time is a `Timer`: `WallClock` here, whose clock is a
parameter because tests give one that only kernels advance, and events on a GPU (gpu/timing.py).
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor

from flashvl_kernels import numerics

Clock = Callable[[], float]
Flat = tuple[Any, ...]

CACHES = 2  # last-level caches between two uses of a byte
MOST_COPIES = 256  # beyond that, small arguments: one sweep of the cache costs less than the copies
STEP = 509  # a prime above MOST_COPIES, so that every copy has its turn


@dataclass(frozen=True)
class Contender:
    """A function to time; `context` is entered around each call, outside of the timed part.

    own_clock: `run` returns the seconds it took, because it ran in another process.
    """

    name: str
    run: Callable[..., Any]
    context: Callable[[], AbstractContextManager[Any]] = nullcontext
    own_clock: bool = False


@dataclass(frozen=True)
class Budget:
    """When a measurement ends: after `seconds` a contender, and at the latest after `most` rounds;
    not before `least` rounds, unless a single call takes longer than `seconds`."""

    seconds: float = 1.0
    least: int = 5
    most: int = 200


@dataclass(frozen=True)
class Times:
    """Seconds of each call, in the order they were made. launch: "graph" or "eager" on a GPU."""

    seconds: tuple[float, ...]
    launch: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def iqr(self) -> float:
        """Distance of the quartiles; 0 for a single call."""
        if len(self.seconds) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return high - low


@lru_cache(1)
def _sweep(size: int) -> Tensor:
    """What empties the cache when read; kept, because a gigabyte takes a second to fill."""
    return torch.zeros(size // 4)


def size_of(flat: Flat) -> int:
    """Bytes of the tensors among the arguments."""
    return sum(a.numel() * a.element_size() for a in flat if isinstance(a, Tensor))


class Rotation:
    """Hands out arguments whose memory the cache has forgotten; `warm` always gives the same.

    Where copies would be too many, the cache is swept each time they have all been handed out:
    then, too, everything between two uses of a byte is more than the cache holds, and a call of a
    few microseconds does not wait for a sweep of its own.
    """

    def __init__(self, flat: Flat, cache_bytes: int, warm: bool = False) -> None:
        self.warm = warm
        wanted = 1 if warm else max(-(-CACHES * cache_bytes // max(size_of(flat), 1)), 1)
        self._swept = None
        if wanted > MOST_COPIES:
            wanted = MOST_COPIES
            self._swept = _sweep(CACHES * cache_bytes)
        self._copies = [flat, *(numerics.duplicate(flat) for _ in range(wanted - 1))]
        self._taken = 0

    @property
    def copies(self) -> int:
        return len(self._copies)

    @property
    def sweeps(self) -> bool:
        """The cache is swept between two uses, because the arguments are too small for copies."""
        return self._swept is not None

    def take(self) -> Flat:
        """Arguments for one call."""
        self._taken += 1
        if self._swept is not None and self._taken % self.copies == 1:
            self._swept.sum()
        # Not the neighbour of the last one: that may have come along with it.
        return self._copies[self._taken * STEP % self.copies]


def timed(contender: Contender, rotation: Rotation, clock: Clock = time.perf_counter) -> float:
    """Seconds of one call, including its way through Python and the dispatcher."""
    args = rotation.take()
    with contender.context():
        start = clock()
        result = contender.run(*args)
        seconds = clock() - start
    return float(result) if contender.own_clock else seconds


class Timer(Protocol):
    """What takes the time of calls."""

    def rotation(self, flat: Flat, warm: bool) -> Rotation:
        """Arguments for its rounds."""
        ...

    def prepare(self, contenders: Sequence[Contender], rotation: Rotation) -> dict[str, str]:
        """What is done once before the first round; how each contender is launched."""
        ...

    def round(self, contenders: Sequence[Contender], rotation: Rotation) -> list[list[float]]:
        """Seconds of the calls of each contender, in turns in this order, as many of each."""
        ...


class WallClock:
    """The time of one call on the host's clock."""

    def __init__(self, cache_bytes: int = 0, clock: Clock = time.perf_counter) -> None:
        self._cache_bytes = cache_bytes
        self._clock = clock

    def rotation(self, flat: Flat, warm: bool) -> Rotation:
        return Rotation(flat, self._cache_bytes, warm)

    def prepare(self, contenders: Sequence[Contender], rotation: Rotation) -> dict[str, str]:
        return {}

    def round(self, contenders: Sequence[Contender], rotation: Rotation) -> list[list[float]]:
        return [[timed(contender, rotation, self._clock)] for contender in contenders]


def interleave(
    contenders: Sequence[Contender],
    rotation: Rotation,
    budget: Budget,
    clock: Clock = time.perf_counter,
    timer: Timer | None = None,
) -> dict[str, Times]:
    """Time every contender in turns; the same number of calls of each. There is no warm-up: the
    caller has called each of them once already, to see that its result is right.

    timer: a clock of the host's, `clock`, if none is given.
    """
    timer = timer or WallClock(clock=clock)
    found: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        with torch.no_grad():
            launches = timer.prepare(contenders, rotation)
            spent = 0.0
            for turn in range(budget.most):
                longest = max((seconds[0] for seconds in found.values() if seconds), default=0.0)
                least = 1 if longest > budget.seconds else budget.least
                if turn >= least and spent >= budget.seconds * len(contenders):
                    break
                first = turn % len(contenders)
                order = (*contenders[first:], *contenders[:first])
                for contender, calls in zip(order, timer.round(order, rotation), strict=True):
                    found[contender.name] += calls
                    spent += sum(calls)
    finally:
        if collecting:
            gc.enable()
    return {name: Times(tuple(s), launches.get(name, "")) for name, s in found.items()}
