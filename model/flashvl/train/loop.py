"""The loop that every training here runs: stages of steps, from a stream of numbered batches.

A stage says which parts learn, for how long and at what peak rate; Muon takes the matrices inside
the model and AdamW the rest, under a linear warm-up and a cosine down to 0. Batches depend only on
the seed and their number, and the whole state is written every few minutes (to a file beside it,
then renamed), so a run that was killed goes on exactly: its weights end bitwise as if it had not
been. The log loses the steps that the state does not know of, which are then made again.

A training is a subclass that makes the batches and the loss.
"""

from __future__ import annotations

import csv
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from flashvl.train.muon import Muon

WARMUP = 100  # steps
AVERAGE = 0.998  # weight of the past in the averaged weights that are shipped
ENDS = 3  # of cycles
SAVE_EVERY = 120.0  # seconds
EXACT = "highest"
PRECISIONS = (EXACT, "medium")  # torch.set_float32_matmul_precision; medium: products in bf16
OUTER = ("heads", "lookup")  # parts that are dropped after training: AdamW's, whatever their shape


@contextmanager
def fp32_products(precision: str) -> Iterator[None]:
    """How exact products of fp32 are inside a `with` block: one of PRECISIONS. Weights, sums and
    what the optimizers keep are fp32 under either."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@dataclass(frozen=True)
class Stage:
    """Which parts learn, for how many steps of how many pictures, at what peak rate.

    cycle: that what it ends with counts among the ends of cycles. The mean of the last ENDS of them
    is what a training leaves (stochastic weight averaging, arXiv 1803.05407). from_cycles: that it
    starts from that mean of those before it.
    """

    name: str
    steps: int
    rate: float
    parts: tuple[str, ...]
    batch: int = 32
    cycle: bool = field(default=False, kw_only=True)
    from_cycles: bool = field(default=False, kw_only=True)

    @property
    def speaks(self) -> bool:
        """Whether answers are part of the loss; else only what the encoder sees is."""
        return "adapter" in self.parts


class Trainer:
    """What learns, what it learns with, and where it stands.

    parts: modules by the names that stages use. kept: the module whose running average of weights
    is shipped. fields: names of the numbers that `losses` reports, for the log.
    """

    fields: tuple[str, ...] = ("loss",)

    def __init__(
        self,
        out: Path,
        seed: int,
        stages: tuple[Stage, ...],
        parts: Mapping[str, nn.Module],
        kept: nn.Module,
    ) -> None:
        self.out, self.seed, self.stages = out, seed, stages
        self.parts, self.kept = dict(parts), kept
        self.average = _copied(kept.state_dict())
        self.cycles: list[dict[str, Tensor]] = []  # averages at the last ENDS of cycles
        self.optimizers: list[torch.optim.Optimizer] = []
        self.enter(0)

    def batches(self, stage: Any, first: int, count: int) -> Iterator[Any]:
        """The next `count` batches of a stage; the stream numbers them from `first` on."""
        raise NotImplementedError

    def losses(self, stage: Any, batch: Any) -> tuple[Tensor, dict[str, Tensor | float]]:
        """The loss of a batch, and what numbers to write down of it."""
        raise NotImplementedError

    def gradients(self, stage: Any, batch: Any) -> dict[str, Tensor | float]:
        """Add the gradients of a batch's loss to what learns; returns what `losses` reports."""
        loss, report = self.losses(stage, batch)
        loss.backward()
        return report

    def identity(self) -> dict[str, Any]:
        """What a saved state must agree with, by the names of the options."""
        return {"seed": self.seed}

    def watch(self, stage: Any) -> None:
        """Called after every step, for whoever wants to look; must not change what is learned."""

    @property
    def steps_done(self) -> int:
        """Of all stages together."""
        return sum(earlier.steps for earlier in self.stages[: self.stage]) + self.step

    def run(self, seconds: float = math.inf) -> bool:
        """Train from wherever the saved state stands, for at most `seconds`; whether the last stage
        has ended."""
        until = time.monotonic() + seconds
        self.out.mkdir(parents=True, exist_ok=True)
        self.resume()
        while self.stage < len(self.stages):
            stage = self.stages[self.stage]
            self._run_stage(stage, until)
            if self.step < stage.steps:
                self.save()
                return False
            if stage.cycle:
                self.cycles = [*self.cycles, _copied(self.average)][-ENDS:]
            self.enter(self.stage + 1)
            last = self.stage == len(self.stages)
            if self.cycles and (last or self.stages[self.stage].from_cycles):
                self._take_mean()
            self.save()
        return True

    def _take_mean(self) -> None:
        for name, value in self.kept.state_dict().items():
            value.copy_(torch.stack([weights[name] for weights in self.cycles]).mean(0))
            self.average[name].copy_(value)

    def save(self) -> None:
        """Write the whole state; a crash in between leaves the previous one."""
        state = {
            "identity": self.identity(), "stage": self.stage, "step": self.step,
            "parts": {name: part.state_dict() for name, part in self.parts.items()},
            "average": self.average, "cycles": self.cycles,
            "optimizers": [o.state_dict() for o in self.optimizers],
        }  # fmt: skip
        partial = self.out / "state.part"
        torch.save(state, partial)
        os.replace(partial, self.out / "state.pt")

    def resume(self) -> None:
        """Continue from the saved state, if there is one."""
        path = self.out / "state.pt"
        if not path.exists():
            return
        state = torch.load(path, weights_only=True, map_location="cpu")
        for name, mine in self.identity().items():
            saved = state["identity"].get(name, mine)  # states of before lack some
            if saved != mine:
                raise ValueError(
                    f"{path} was trained with {name} {saved}, not {mine}: pass --{name} {saved}, "
                    f"or another --out"
                )
        self.enter(state["stage"])
        self.step = state["step"]
        for name, part in self.parts.items():
            part.load_state_dict(state["parts"][name])
        for name, value in self.average.items():
            value.copy_(state["average"][name])
        self.cycles = [
            {name: value.to(self.average[name].device) for name, value in weights.items()}
            for weights in state.get("cycles", ())[-ENDS:]  # states of before had none, or all
        ]
        if not state["optimizers"]:  # the end of a list of stages that has since become longer
            return
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)

    def enter(self, number: int) -> None:
        """Stand at the beginning of a stage: its parts learn, and only these. One more than there
        are stages is the end."""
        self.stage, self.step = number, 0
        if number == len(self.stages):
            self.optimizers = []
            return
        for name, part in self.parts.items():
            part.requires_grad_(name in self.stages[number].parts)
        self.optimizers = self._make_optimizers()

    def learn(self, stage: Stage, batch: Any) -> dict[str, float]:
        """One step; returns what `losses` reported."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = stage.rate * schedule(self.step, stage.steps)
        report = self.gradients(stage, batch)
        nn.utils.clip_grad_norm_(self._learning(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        past, present = list(self.average.values()), list(self.kept.state_dict().values())
        torch._foreach_lerp_(past, present, 1 - AVERAGE)
        return {name: float(value) for name, value in report.items()}  # a GPU is waited for here

    def _run_stage(self, stage: Stage, until: float) -> None:
        saved = time.monotonic()
        log = Log(self.out / "log.csv", self.fields, keep=self.steps_done)
        source = self.batches(stage, self.steps_done, stage.steps - self.step)
        bar = tqdm(source, desc=stage.name, initial=self.step, total=stage.steps, smoothing=0.05)
        for batch in bar:
            report = self.learn(stage, batch)
            self.step += 1
            log.add(stage.name, self.step, report)
            bar.set_postfix_str(log.recent())
            self.watch(stage)
            if time.monotonic() - saved > SAVE_EVERY:
                self.save()
                saved = time.monotonic()
            if time.monotonic() > until:
                break

    def _learning(self) -> Iterable[Tensor]:
        for name in self.stages[self.stage].parts:
            yield from self.parts[name].parameters()

    def _make_optimizers(self) -> list[torch.optim.Optimizer]:
        """Muon for the matrices inside the model; tables, positions, heads and vectors: AdamW."""
        matrices: list[Tensor] = []
        rest: list[Tensor] = []
        for name in self.stages[self.stage].parts:
            for full, parameter in self.parts[name].named_parameters():
                outer = name in OUTER or "table" in full or "positions" in full
                (rest if outer or parameter.dim() < 2 else matrices).append(parameter)
        adam = torch.optim.AdamW(rest, betas=(0.9, 0.98), weight_decay=0.0, foreach=True)
        return [Muon(matrices), adam]


def _copied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in state.items()}


def initialise(model: nn.Module) -> None:
    """Maps at 1/sqrt(inputs), tables small, norms at one: what a model this narrow starts from."""
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            nn.init.constant_(parameter, 1.0 if "norm" in name and "weight" in name else 0.0)
        elif "positions" in name:
            parameter.data.copy_(waves(parameter.shape[0], parameter.shape[1]))
        elif "table" in name:
            nn.init.normal_(parameter, std=0.05)
        else:
            residual = any(end in name for end in ("out.weight", "down.weight"))
            scale = 0.35 if residual else 1.0
            nn.init.normal_(parameter, std=scale / math.sqrt(parameter.shape[1]))


def waves(places: int, channels: int) -> Tensor:
    """Sines and cosines of the row and the column, [places, channels], of a square of places.

    Neighbours start alike, so attention finds them (the idea is that of arXiv 2104.02057).
    """
    side = math.isqrt(places)
    rates = 2 * math.pi / side * 2.0 ** torch.linspace(-2, 1, channels // 4)
    angles = torch.arange(side)[:, None] * rates
    wave = torch.cat((angles.sin(), angles.cos()), 1)
    rows, columns = wave.repeat_interleave(side, 0), wave.repeat(side, 1)
    return torch.cat((rows, columns), 1)


def schedule(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to 0, as a share of the peak rate."""
    if step < WARMUP:
        return (step + 1) / WARMUP
    return 0.5 + 0.5 * math.cos(math.pi * (step - WARMUP) / max(1, steps - WARMUP))


class Log:
    """Every step's report: a row of a CSV file, and smoothed for the progress bar.

    keep: rows that an earlier run wrote and the saved state knows of; later ones are dropped.
    """

    def __init__(self, path: Path, fields: tuple[str, ...], keep: int) -> None:
        self._path, self._fields = path, fields
        self._smooth: dict[str, float] = {}
        lines = path.read_text(encoding="utf-8").splitlines()[1:] if path.exists() else []
        header = ",".join(("stage", "step", *fields))
        partial = path.with_suffix(".part")
        partial.write_text("\n".join((header, *lines[:keep])) + "\n", encoding="utf-8")
        os.replace(partial, path)

    def add(self, stage: str, step: int, report: dict[str, float]) -> None:
        for name, value in report.items():
            self._smooth[name] = value + 0.95 * (self._smooth.get(name, value) - value)
        with self._path.open("a", encoding="utf-8", newline="") as file:
            cells = [f"{report[name]:.4f}" if name in report else "" for name in self._fields]
            csv.writer(file, lineterminator="\n").writerow((stage, step, *cells))

    def recent(self) -> str:
        return " ".join(f"{name} {self._smooth[name]:.2f}" for name in self._fields
                        if name in self._smooth)  # fmt: skip
