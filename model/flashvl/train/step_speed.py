"""Times a training step on our kernels against plain PyTorch eager, in one run and in turns.

    python -m flashvl.train.step_speed                       # medians, their parts, the ratio
    python -m flashvl.train.step_speed --precision medium    # with products in bf16
    python -m flashvl.train.step_speed --profile             # where the backward of ours goes

A step is what `flashvl.train.tiles` does in its stage "join": the loss of a batch, its backward,
clipping and the optimizers. Plain is the backend "torch": the expressions that every op states as
its reference, PyTorch's own attention among them, recorded by autograd. Under the other backends an
op without a backward kernel of its own runs its reference once more before it goes back through it;
the profile says which of these cost most. Batches are drawn before anything is timed, and each is
given to every side. A number from a busy machine is worth nothing: the spread tells.

Under --precision medium fp32 products may be rounded to bf16, for plain PyTorch as for us (it is
PyTorch's setting). Plain in full fp32 is timed, too, and of each batch the faster plain step
counts.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from flashvl.train.loop import EXACT, PRECISIONS, fp32_products
from flashvl.train.tiled_batches import TiledBatch
from flashvl.train.tiles import Stage, Trainer
from flashvl_kernels import backend

STAGE = 2  # "join": every part learns
BAR = 1.5  # a step on our kernels at least this much faster than plain
PARTS = ("forward", "backward", "optimizer")
NODE = "autograd::engine::evaluate_function: "


@dataclass(frozen=True)
class Timed:
    """Seconds of each part of a step on one batch."""

    forward: float
    backward: float
    optimizer: float

    @property
    def step(self) -> float:
        return self.forward + self.backward + self.optimizer


@dataclass(frozen=True)
class Side:
    """What computes the steps: a backend, and how exact its fp32 products are."""

    name: str
    backend: str
    precision: str


def sides(ours: str, precision: str) -> tuple[Side, ...]:
    """Ours, then every plain one that it has to beat."""
    found = (Side(ours, ours, precision), Side("torch", "torch", precision))
    return found if precision == EXACT else (*found, Side("torch, exact", "torch", EXACT))


def one_step(
    trainer: Trainer, batch: TiledBatch, clock: Callable[[], float] = time.perf_counter
) -> Timed:
    """`Trainer.learn` without the average, each part timed."""
    stage = trainer.stages[trainer.stage]
    marks = [clock()]
    loss, _ = trainer.losses(stage, batch)
    marks.append(clock())
    loss.backward()
    marks.append(clock())
    nn.utils.clip_grad_norm_(
        (p for name in stage.parts for p in trainer.parts[name].parameters()), 1.0
    )
    for optimizer in trainer.optimizers:
        optimizer.step()
        optimizer.zero_grad()
    marks.append(clock())
    return Timed(*(after - before for before, after in pairwise(marks)))


def compare(
    trainer: Trainer, batches: list[TiledBatch], rounds: int, sides: tuple[Side, ...]
) -> dict[str, list[Timed]]:
    """Every batch on every side, in turns that swap order from round to round."""
    found: dict[str, list[Timed]] = {side.name: [] for side in sides}
    for number in range(-1, rounds):  # the round before the first warms caches up
        for index, batch in enumerate(batches):
            for side in sides if (number + index) % 2 else sides[::-1]:
                with backend(side.backend), fp32_products(side.precision):
                    timed = one_step(trainer, batch)
                if number >= 0:
                    found[side.name].append(timed)
    return found


def report(found: dict[str, list[Timed]]) -> Iterator[str]:
    """The table of all sides, ours first, and the ratio of the steps on one batch."""
    ours, *plain = found.values()
    yield f"{'':<10}" + "".join(f"{name:>15}" for name in found) + f"{'plain/ours':>12}"
    for part in ("step", *PARTS):
        medians = [median(getattr(timed, part) for timed in side) for side in found.values()]
        mine, *theirs = medians
        yield (
            f"{part:<10}"
            + "".join(f"{1000 * seconds:>12.1f} ms" for seconds in medians)
            + f"{min(theirs) / mine:>12.2f}"
        )
    ratios = [
        min(step.step for step in others) / mine.step
        for mine, *others in zip(ours, *plain, strict=True)
    ]
    low, middle, high = quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    verdict = "meets" if middle >= BAR else "does not meet"
    yield (
        f"plain over ours, of one batch: median {middle:.2f}, quartiles {low:.2f} to {high:.2f} "
        f"(n {len(ratios)}); {verdict} the bar of {BAR}"
    )


def profiled(trainer: Trainer, batches: list[TiledBatch]) -> Iterator[str]:
    """Where the time of a step goes: the backward by autograd's nodes, dearest first."""
    one_step(trainer, batches[0])
    parts: dict[str, float] = defaultdict(float)
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        for batch in batches:
            timed = one_step(trainer, batch)
            for name in PARTS:
                parts[name] += getattr(timed, name)
    whole = sum(parts.values())
    for name, seconds in parts.items():
        yield f"{name:<10}{seconds / whole:>6.1%} of a step ({1000 * whole / len(batches):.1f} ms)"
    nodes: dict[str, list[float]] = defaultdict(list)
    for event in recorded.events():
        if event.name.startswith(NODE) and not _inside_another(event):
            nodes[event.name.removeprefix(NODE)].append(event.cpu_time_total / 1e6)
    total = sum(map(sum, nodes.values()))
    yield f"{'of the backward':>16}{'calls a step':>14}  node"
    for name, calls in sorted(nodes.items(), key=lambda item: -sum(item[1]))[:14]:
        yield f"{sum(calls) / total:>16.1%}{len(calls) / len(batches):>14.1f}  {name}"


def _inside_another(event: Any) -> bool:
    """Whether a node ran within another, as those of a recomputed reference do."""
    parent = event.cpu_parent
    while parent is not None:
        if parent.name.startswith(NODE):
            return True
        parent = parent.cpu_parent
    return False


@contextmanager
def prepared(steps: int, size: int) -> Iterator[tuple[Trainer, list[TiledBatch]]]:
    """A trainer in the middle of "join", and that many batches of `size` pictures."""
    with TemporaryDirectory() as folder:
        trainer = Trainer(Path(folder), seed=0, workers=0)
        trainer.enter(STAGE)
        stage = trainer.stages[STAGE]
        trainer.step = stage.steps // 2
        sized = Stage(stage.name, stage.steps, stage.rate, stage.parts, size)
        yield trainer, list(trainer.batches(sized, trainer.steps_done, steps))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "flashvl.train.step_speed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--profile", action="store_true", help="profile instead of comparing")
    parser.add_argument("--backend", default="auto", help="what is timed against torch")
    parser.add_argument("--precision", default=EXACT, choices=PRECISIONS, help="of fp32 products")
    parser.add_argument("--batches", type=int, default=6, help="different batches")
    parser.add_argument("--pictures", type=int, default=24, help="in a batch")
    parser.add_argument("--rounds", type=int, default=5, help="times that each batch is used")
    args = parser.parse_args(argv)
    torch.use_deterministic_algorithms(True)  # as training runs
    with prepared(args.batches, args.pictures) as (trainer, batches):
        print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, {args.batches} "
              f"batches of {args.pictures} pictures")  # fmt: skip
        if args.profile:
            with backend(args.backend), fp32_products(args.precision):
                lines = list(profiled(trainer, batches))
        else:
            lines = list(
                report(compare(trainer, batches, args.rounds, sides(args.backend, args.precision)))
            )
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
