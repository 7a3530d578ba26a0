"""What a gate decides from turns of two sides: how sure, when to measure again, when to stop.

A round is a turn of the base and one of the head, one right after the other, in alternating order.
What slows the machine for longer than that meets both, so a case is judged by the logarithm of
head over base of each round. Their middle half is averaged (preemptions are the outliers), and a
bootstrap over rounds (Efron, Annals of Statistics 7, 1979) says how sure that is.

Rounds within one pair of processes cannot see that a kernel runs some percent faster or slower
from one process to the next with nothing changed, because its memory falls elsewhere. So the first
pair of processes only raises suspicion, and a suspect is measured again in fresh pairs, which alone
decide: their means are independent samples of everything that varies, and the first mean, which was
selected for being large, is left out. A verdict needs a mean of at least `least` and a lower bound
above nothing, at a level shared out over all cases (Bonferroni) and over the looks taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Protocol

import numpy as np

from flashvl_bench.compare import Change, Key

LEAST = 0.05  # a change below this is not told, however sure it is
CONFIDENCE = 0.99  # that an unchanged run has no wrong verdict
RESAMPLES = 1000
FEWEST_ROUNDS = 5
# Half of `least` makes a suspect: of twice `least` (the 10 % of the bars) next to none is missed.
SUSPICION = 0.5
FEWEST_PAIRS, MOST_PAIRS = 2, 8  # fresh pairs of processes for a suspect
FEWEST_TO_TELL = 4  # of them for a change to be told: two or three may agree by chance
# Pairs of processes differ by this much at least, whatever a handful of them says; and by as much
# as the cases of the first pair do among each other, if these are enough to tell (most of them are
# unchanged).
PROCESS_SPREAD = 0.015
CASES_TO_TELL = 8
MOST_SUSPECTS = 12  # measured again; beyond that so much has changed that the rest is only listed


@dataclass(frozen=True)
class Measured:
    """One case on one pair of processes; times of each round only where both sides are "ok".

    status, reason: of base and head, "ok" or one of `flashvl_bench.ops.Row`; "absent" where a
    side has no such case.
    """

    key: Key
    status: tuple[str, str] = ("ok", "ok")
    reason: tuple[str, str] = ("", "")
    base: tuple[float, ...] = ()
    head: tuple[float, ...] = ()


class Meter(Protocol):
    """Measures on a fresh pair of processes: `keys`, or every case where that is None."""

    def measure(self, keys: Sequence[Key] | None) -> Mapping[Key, Measured]: ...


@dataclass(frozen=True)
class Moved:
    """A logarithm of a ratio and its standard error."""

    by: float
    error: float


def moved(base: Sequence[float], head: Sequence[float]) -> Moved:
    """By how much the head is slower on one pair of processes, by the times of its rounds."""
    logs = np.log(head) - np.log(base)
    rng = np.random.default_rng(0)
    drawn = logs[rng.integers(len(logs), size=(RESAMPLES, len(logs)))]
    return Moved(float(_middle(logs)), float(np.std(_middle(drawn))))


def _middle(values: np.ndarray) -> np.ndarray:
    """The mean of the middle half, along the last axis."""
    cut = values.shape[-1] // 4
    ordered = np.sort(values, axis=-1)
    middle: np.ndarray = ordered[..., cut : values.shape[-1] - cut].mean(-1)
    return middle


def spread(firsts: Sequence[Moved]) -> float:
    """The standard deviation of a pair of processes with nothing changed, by the cases' deviation
    from their median: a few that did change, or all by the same share, leave it alone."""
    if len(firsts) < CASES_TO_TELL:
        return PROCESS_SPREAD
    by = np.array([each.by for each in firsts])
    deviation = 1.4826 * float(np.median(np.abs(by - np.median(by))))  # 1.4826: of a normal one
    return max(PROCESS_SPREAD, deviation)


def pooled(pairs: Sequence[Moved], least_spread: float = PROCESS_SPREAD) -> Moved:
    """The mean over pairs of processes. Its error is by the largest of what the pairs show among
    each other, what their rounds show, and `least_spread`."""
    by = np.array([pair.by for pair in pairs])
    within = float(np.mean([pair.error for pair in pairs]))
    between = float(by.std(ddof=1)) if len(by) > 1 else 0.0
    largest = max(between, float(np.hypot(within, PROCESS_SPREAD)), least_spread)
    return Moved(float(by.mean()), largest / len(by) ** 0.5)


def _bound(cases: int) -> float:
    """Standard errors from the mean to its bound: one side, shared out over cases and looks."""
    looks = MOST_PAIRS - FEWEST_PAIRS + 1
    return NormalDist().inv_cdf(1 - (1 - CONFIDENCE) / (2 * cases * looks))


def decide(meter: Meter, least: float = LEAST) -> list[Change]:
    """The change of every case, from as many pairs of processes as it takes."""
    first = meter.measure(None)
    changes = {key: _without_times(measured) for key, measured in first.items()}
    timed = [key for key, change in changes.items() if change is None]
    found: dict[Key, list[Moved]] = {key: [] for key in timed}
    start = {key: moved(first[key].base, first[key].head) for key in timed}
    usual = spread(list(start.values()))
    suspects = [k for k in timed if abs(start[k].by) >= SUSPICION * np.log1p(least)]
    suspects.sort(key=lambda key: -start[key].by)  # the slower first: they decide the exit status
    open_keys = suspects[:MOST_SUSPECTS]
    verdicts: dict[Key, Change] = {}
    for taken in range(1, MOST_PAIRS + 1):
        if not open_keys:
            break
        again = meter.measure(open_keys)
        for key in open_keys:
            failed = _without_times(again[key])
            if failed is not None:
                verdicts[key] = failed
                continue
            found[key].append(moved(again[key].base, again[key].head))
            if taken >= FEWEST_PAIRS:
                change = _judged(key, pooled(found[key], usual), len(timed), least, taken)
                if change is not None:
                    verdicts[key] = change
        open_keys = [key for key in open_keys if key not in verdicts]
    for key in timed:
        if key in verdicts:
            changes[key] = verdicts[key]
            continue
        verdict = "unconfirmed" if key in suspects else "same"
        changes[key] = _stated(key, verdict, pooled([start[key]], usual), len(timed))
    return [change for change in changes.values() if change is not None]


def _judged(key: Key, pool: Moved, cases: int, least: float, pairs: int) -> Change | None:
    """The verdict on a suspect; None where another pair of processes is wanted."""
    size, bar, reach = abs(pool.by), float(np.log1p(least)), _bound(cases) * pool.error
    if size >= bar and size > reach:
        if pairs < min(FEWEST_TO_TELL, MOST_PAIRS):
            return None
        return _stated(key, "slower" if pool.by > 0 else "faster", pool, cases)
    if pairs == MOST_PAIRS or size + pool.error < bar:
        return _stated(key, "same", pool, cases)
    return None


def _stated(key: Key, verdict: str, pool: Moved, cases: int) -> Change:
    reach = _bound(cases) * pool.error
    ratio, low, high = (float(np.exp(x)) for x in (pool.by, pool.by - reach, pool.by + reach))
    return Change(key, verdict, ratio, low, high)


def _without_times(measured: Measured) -> Change | None:
    """The verdict where a side shows no time; None where both do."""
    base, head = measured.status
    if (base, head) == ("ok", "ok"):
        if len(measured.base) < FEWEST_ROUNDS:
            return Change(measured.key, "too few rounds", reason=f"needs {FEWEST_ROUNDS}")
        return None
    change = Change(measured.key, "unmeasured", reason=f"{head}: {measured.reason[1]}")
    if "absent" in (base, head):
        return replace(change, verdict="new" if base == "absent" else "gone", reason="")
    if base == "ok":
        return replace(change, verdict="broken")
    if head == "ok":
        return replace(change, verdict="repaired", reason=f"{base}: {measured.reason[0]}")
    return change
