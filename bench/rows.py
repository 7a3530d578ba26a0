"""A row of the model benchmark: one part, on our model in one weight format, beside its peers."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from flashvl_bench.ceilings import Ceilings
from flashvl_bench.remote import RemoteError
from flashvl_bench.timing import Budget, Contender, Rotation, interleave
from flashvl_kernels import numerics
from flashvl_kernels.spec import Cost

OURS = "ours"
# Cosine to the float64 logits of the same weights before they were rounded to integers: what
# static_2b is to keep. A wrong kernel gives about 0; small models lose more to rounding than large.
COSINE_BARS = {"int8": 0.999, "int4": 0.98}
LEAST_COSINE = 0.8


@dataclass(frozen=True)
class PeerRow:
    """A peer in the same rounds. status: ok or "absent". speedup: its median over ours."""

    name: str
    status: str = "ok"
    reason: str = ""
    seconds: tuple[float, ...] = ()
    median: float | None = None
    iqr: float | None = None
    speedup: float | None = None


@dataclass(frozen=True)
class Row:
    """status: ok or "wrong"; times only where the output is right.

    bytes_read, bytes_written, flops: the work, whatever the kernel (work.py). fraction: the least
    time the ceilings allow for it over our median; bound: what sets that. error, peer_error: root
    mean square against float64, relative to the output's; cosine: of integer weights' logits.
    """

    part: str
    weights: str
    backend: str
    status: str = "ok"
    reason: str = ""
    bytes_read: int = 0
    bytes_written: int = 0
    flops: int = 0
    seconds: tuple[float, ...] = ()
    median: float | None = None
    iqr: float | None = None
    tokens_per_second: float | None = None
    fraction: float | None = None
    bound: str = ""
    error: float | None = None
    peer_error: float | None = None
    cosine: float | None = None
    peers: tuple[PeerRow, ...] = ()


def judged(row: Row, got: Tensor, theirs: Tensor, truth: Tensor) -> Row:
    """`row` with its errors and status.

    Float weights: at most twice the peer's error and one rounding, the rule of the ops. Integer
    weights differ from the float64 run by design; there a low cosine is wrong.
    """
    size = float(truth.square().mean().sqrt())
    peer_error = float((theirs.double() - truth).square().mean().sqrt()) / size
    verdict = numerics.judge(got, theirs, truth)
    error = float((got.double() - truth).square().mean().sqrt()) / size
    row = replace(row, error=error, peer_error=peer_error)
    if row.weights not in COSINE_BARS:
        return row if verdict.right else replace(row, status="wrong", reason=verdict.reason)
    flat = got.double().flatten(), truth.flatten()
    cosine = float(torch.nn.functional.cosine_similarity(*flat, dim=0))
    row = replace(row, cosine=cosine if math.isfinite(cosine) else None)
    if cosine >= LEAST_COSINE:
        return row
    return replace(row, status="wrong", reason=f"cosine {cosine:.4f}; needs {LEAST_COSINE}")


def timed(
    row: Row,
    ours: Contender,
    peers: dict[str, Contender | RemoteError],
    calls: int,
    work: tuple[Cost, Ceilings, str],
    tokens: int = 0,
) -> Row:
    """`row` with the times of all sides, in turns. work: the cost, the ceilings, the dtype. tokens:
    made by one call, for tokens a second. A peer that dies is measured no further."""
    absent = [PeerRow(n, "absent", str(p)) for n, p in peers.items() if isinstance(p, RemoteError)]
    if row.status != "ok":
        return replace(row, peers=tuple(absent))
    present = [p for p in peers.values() if isinstance(p, Contender)]
    times = interleave([ours, *present], Rotation((), 0, warm=True), Budget(math.inf, calls, calls))
    own, (cost, top, dtype) = times.pop(ours.name), work
    least, bound = top.least_time(cost, dtype)
    found = [
        PeerRow(name, "ok", "", t.seconds, t.median, t.iqr, t.median / own.median)
        for name, t in times.items()
    ]
    return replace(
        row,
        bytes_read=cost.bytes_read,
        bytes_written=cost.bytes_written,
        flops=cost.flops,
        seconds=own.seconds,
        median=own.median,
        iqr=own.iqr,
        tokens_per_second=tokens / own.median if tokens else None,
        fraction=least / own.median,
        bound=bound,
        peers=tuple(found + absent),
    )


def contender(name: str, remote: Any, do: str) -> Contender:
    """A remote peer as a side of `interleave`."""
    return Contender(name, lambda: remote.seconds(do), own_clock=True)
