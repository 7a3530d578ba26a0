"""Intervals of shares and of their differences.

wilson         of a share (Wilson 1927): holds its level at few cases and near 0 and 1
newcombe       of the difference of two shares of different cases (Newcombe 1998, method 10):
               made of the two Wilson intervals
paired         of the mean difference on the same cases (Agresti and Min 2005): the normal
               interval after half a case is added to each cell of the two-by-two table, so that
               no differing case does not make it a point
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

LEVEL = 0.95


class Interval(NamedTuple):
    """An estimate and its bounds; a difference's middle need not be the estimate."""

    value: float
    low: float
    high: float

    @property
    def sign(self) -> int:
        """1 or -1 where the whole interval lies on one side of zero, else 0."""
        return (self.low > 0) - (self.high < 0)


def z_of(level: float = LEVEL, among: int = 1) -> float:
    """The normal quantile of a two-sided interval; `among` so many, all of them hold at `level`
    (Bonferroni)."""
    return NormalDist().inv_cdf(1 - (1 - level) / (2 * among))


def wilson(right: float, total: int, z: float | None = None) -> Interval:
    """The interval of right / total; right may be a mean of several counts. No case tells
    nothing."""
    if total == 0:
        return Interval(math.nan, 0.0, 1.0)
    z = z_of() if z is None else z
    share = right / total
    scale = 1 + z * z / total
    middle = (share + z * z / (2 * total)) / scale
    half = z * math.sqrt(share * (1 - share) / total + (z / (2 * total)) ** 2) / scale
    return Interval(share, max(0.0, middle - half), min(1.0, middle + half))


def newcombe(
    right: float, total: int, other_right: float, other_total: int, z: float | None = None
) -> Interval:
    """The interval of right / total - other_right / other_total."""
    one, other = wilson(right, total, z), wilson(other_right, other_total, z)
    value = one.value - other.value
    down = math.hypot(one.value - one.low, other.high - other.value)
    up = math.hypot(one.high - one.value, other.value - other.low)
    return Interval(value, value - down, value + up)


def paired(differences: Sequence[float], z: float | None = None) -> Interval:
    """The interval of the mean of differences in [-1, 1], one a case."""
    if not differences:
        return Interval(math.nan, -1.0, 1.0)
    z = z_of() if z is None else z
    total = len(differences) + 2
    middle = sum(differences) / total
    variance = (sum(d * d for d in differences) + 1) / total - middle * middle
    half = z * math.sqrt(variance / total)
    value = sum(differences) / len(differences)
    return Interval(value, max(-1.0, middle - half), min(1.0, middle + half))
