"""The training stream: numbers and scenes, mixed, in batches of one canvas size.

Batch b of a seed is the same whenever, wherever and by however many workers it is made, so an
interrupted run resumes exactly by passing the number of batches already used.
"""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from itertools import count
from typing import Any, TypeVar, cast

import numpy as np

from flashvl.train.canvas import SIZE_SHARES, SIZES, Example
from flashvl.train.digits import draw_number
from flashvl.train.scenes import draw_scene

Made = TypeVar("Made")

# First word of every random key: training, a batch's canvas, held-out, a batch's subject.
TRAIN, CANVAS, HELD_OUT, SUBJECT = 0, 1, 2, 3


def example(
    seed: int, index: int, size: tuple[int, int] = SIZES[0], numbers: float = 0.5
) -> Example:
    """Training example `index` of a seed: a number with probability `numbers`, else a scene."""
    rng = np.random.default_rng((TRAIN, seed, index))
    return draw_number(rng, size) if rng.random() < numbers else draw_scene(rng, size)


def canvas_of(seed: int, number: int) -> tuple[int, int]:
    """Canvas (H, W) of batch `number`: one size a batch, so that pictures stack."""
    return SIZES[int(np.random.default_rng((CANVAS, seed, number)).choice(3, p=SIZE_SHARES))]


def shares_of(seed: int, number: int, numbers: float) -> float:
    """The share of numbers in batch `number`: 1 or 0, so that conversations are of like length and
    little of a batch is padding; `numbers` on average."""
    return float(np.random.default_rng((SUBJECT, seed, number)).random() < numbers)


def make_batch(seed: int, number: int, batch: int, numbers: float = 0.5) -> dict[str, Any]:
    """Batch `number` as NumPy arrays: examples number * batch .. (number + 1) * batch - 1, all
    numbers (a share `numbers` of the batches) or all scenes."""
    size = canvas_of(seed, number)
    share = shares_of(seed, number, numbers)
    made = [example(seed, number * batch + i, size, share) for i in range(batch)]
    return {
        "images": np.stack([e.image for e in made]),
        "turns": [e.turns for e in made],
        "marks": [e.marks for e in made],
        "symbol": np.stack([e.targets.symbol for e in made]),
        "ordinal": np.stack([e.targets.ordinal for e in made]),
        "colour": np.stack([e.targets.colour for e in made]),
    }


def to_tensors(arrays: dict[str, Any]) -> dict[str, Any]:
    import torch

    return {
        name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        for name, value in arrays.items()
    }


def _lower_priority() -> None:
    os.nice(5)  # the training step, not the generator, is what should never wait for a core


def stream(
    seed: int, start: int = 0, workers: int = 1, batch: int = 64, numbers: float = 0.5
) -> Iterator[dict[str, Any]]:
    """Endless batches from batch number `start` on.

    workers: processes that draw ahead; 0 draws in the calling process. A worker process imports
    the caller's main module, which therefore needs its `if __name__ == "__main__"` guard.

    Each batch: images uint8 [B, H, W, 3]; turns, a list of B tuples of (question, answer, kind);
    marks, what was drawn;
    symbol, ordinal, colour int64 [B, H/8 * W/8]; all of one canvas size (see canvas.SIZES).
    """
    if batch < 1 or start < 0 or workers < 0 or not 0 <= numbers <= 1:
        raise ValueError(
            f"stream needs batch >= 1, start >= 0, workers >= 0 and numbers in [0, 1], "
            f"got batch={batch}, start={start}, workers={workers}, numbers={numbers}"
        )
    for arrays in in_order(partial(_numbered, seed, batch, numbers), start, workers):
        yield to_tensors(arrays)


def _numbered(seed: int, batch: int, numbers: float, number: int) -> dict[str, Any]:
    return make_batch(seed, number, batch, numbers)


def in_order(make: Callable[[int], Made], start: int, workers: int) -> Iterator[Made]:
    """make(start), make(start + 1), ... without end, drawn ahead by `workers` processes; 0 draws in
    the calling process."""
    if workers == 0:
        yield from map(make, count(start))
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_lower_priority
    )
    try:
        waiting: deque[Future[Made]] = deque()
        numbers = count(start)
        while True:
            while len(waiting) < 3 * workers:
                waiting.append(pool.submit(make, next(numbers)))
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def ahead(items: Iterable[Made]) -> Iterator[Made]:
    """The same items; the next one is made in a thread while the caller works on this one."""
    source = iter(items)
    end = object()
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, source, end)
        while (item := coming.result()) is not end:
            coming = thread.submit(next, source, end)
            yield cast(Made, item)
