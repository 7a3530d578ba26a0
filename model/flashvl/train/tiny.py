"""Trains the tiny Dynamic-ISS checkpoint, through the library's own ops and their autograd.

    python -m flashvl.train.tiny            # or: make train-tiny

Five stages, two of them as in the paper (arXiv 2505.09498), each with Muon for the matrices and
AdamW for the rest, and a cosine from its peak rate to 0:

    look   encoder and dense heads: what covers each patch
    talk   adapter and decoder answer questions; the encoder stands still
    join   everything together
    read   everything, mostly on numbers
    count  everything, mostly on scenes

Batches depend only on the seed and their number, and the state is written every few minutes, so a
run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from flashvl.config import FlashVLConfig
from flashvl.model import FlashVL
from flashvl.tokenizer import Tokenizer
from flashvl.train.batches import Batch, collate
from flashvl.train.dataset import stream
from flashvl.train.lookups import LookupHead, MentionFinder, Watched
from flashvl.train.losses import DenseHeads, accuracy, canvas_features, spoken
from flashvl.train.muon import Muon

ASSETS = Path(__file__).parents[1] / "assets"
WARMUP = 100  # steps
AVERAGE = 0.998  # weight of the past in the averaged weights that are shipped
DENSE = 0.5  # weight of the dense loss beside the next-token loss
LOOK = 0.3  # weight of the lookup loss beside it
SAVE_EVERY = 120.0  # seconds


@dataclass(frozen=True)
class Stage:
    """Which parts learn, for how many steps of how many pictures, at what peak rate; `numbers` is
    the share of batches that show numbers instead of scenes."""

    name: str
    steps: int
    rate: float
    parts: tuple[str, ...]
    numbers: float = 0.5
    batch: int = 32

    @property
    def speaks(self) -> bool:
        return "decoder" in self.parts


EVERYTHING = ("vision", "heads", "adapter", "decoder", "lookup")
STAGES = (
    Stage("look", 1500, 2e-3, ("vision", "heads")),
    Stage("talk", 1200, 2e-3, ("adapter", "decoder", "lookup"), numbers=0.4, batch=24),
    Stage("join", 2200, 1e-3, EVERYTHING, numbers=0.5, batch=24),
    Stage("read", 2000, 1e-3, EVERYTHING, numbers=0.6),
    Stage("count", 1800, 8e-4, EVERYTHING, numbers=0.4),
)


class Trainer:
    """The model, what it learns with, and where it stands."""

    def __init__(self, out: Path, seed: int, stages: tuple[Stage, ...], workers: int = 1) -> None:
        self.out, self.seed, self.stages = out, seed, stages
        self.workers = workers
        self.config = FlashVLConfig.tiny()
        self.tokenizer = Tokenizer.from_pretrained(ASSETS / "tiny")
        self.model = FlashVL.random(self.config, seed, dtype=torch.float32, layout="rows")
        torch.manual_seed(seed)
        self.finder = MentionFinder(self.tokenizer, self.config.decoder.vocab)
        self.heads = DenseHeads(self.config.vision.dim)
        self.lookup = LookupHead(self.config.decoder.dim)
        initialise(self.model)
        self.parts: dict[str, nn.Module] = {
            "vision": self.model.vision, "adapter": self.model.adapter,
            "decoder": self.model.decoder,
            "heads": self.heads, "lookup": self.lookup,
        }  # fmt: skip
        self.average = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.stage, self.step = 0, 0
        self.optimizers = self._make_optimizers()

    def run(self) -> None:
        """Train to the end of the last stage, from wherever the saved state stands."""
        self.out.mkdir(parents=True, exist_ok=True)
        self.resume()
        while self.stage < len(self.stages):
            self._run_stage(self.stages[self.stage])
            self.stage, self.step = self.stage + 1, 0
            if self.stage < len(self.stages):
                self.optimizers = self._make_optimizers()
            self.save()

    def export(self, folder: Path, dtype: torch.dtype) -> None:
        """Write the averaged weights in the released layout."""
        self.model.load_state_dict(self.average)
        self.model.tokenizer = self.tokenizer
        self.model.to(dtype).save_pretrained(folder)

    def save(self) -> None:
        """Write the whole state; a crash in between leaves the previous one."""
        state = {
            "stage": self.stage, "step": self.step, "seed": self.seed,
            "model": self.model.state_dict(), "heads": self.heads.state_dict(),
            "lookup": self.lookup.state_dict(),
            "average": self.average, "optimizers": [o.state_dict() for o in self.optimizers],
        }  # fmt: skip
        partial = self.out / "state.part"
        torch.save(state, partial)
        os.replace(partial, self.out / "state.pt")

    def resume(self) -> None:
        """Continue from the saved state, if there is one."""
        path = self.out / "state.pt"
        if not path.exists():
            return
        state = torch.load(path, weights_only=True)
        if state["seed"] != self.seed:
            raise ValueError(
                f"{path} was trained with seed {state['seed']}, not {self.seed}: pass --seed "
                f"{state['seed']}, or another --out"
            )
        self.stage, self.step = state["stage"], state["step"]
        self.model.load_state_dict(state["model"])
        self.heads.load_state_dict(state["heads"])
        self.lookup.load_state_dict(state["lookup"])
        self.average = state["average"]
        if self.stage < len(self.stages):
            self.optimizers = self._make_optimizers()
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)

    def _run_stage(self, stage: Stage) -> None:
        for name, part in self.parts.items():
            part.requires_grad_(name in stage.parts)
        done = sum(earlier.steps for earlier in self.stages[: self.stage])
        saved = time.monotonic()
        log = Log(self.out / "log.csv")
        source = stream(self.seed, done + self.step, self.workers, stage.batch, stage.numbers)
        bar = tqdm(self._collated(source, stage.steps - self.step), desc=stage.name,
                   initial=self.step, total=stage.steps, smoothing=0.05)  # fmt: skip
        for batch in bar:
            report = self._learn(stage, batch)
            self.step += 1
            log.add(stage.name, self.step, report)
            bar.set_postfix_str(log.recent())
            if time.monotonic() - saved > SAVE_EVERY:
                self.save()
                saved = time.monotonic()

    def _collated(self, source: Iterator[dict[str, Any]], count: int) -> Iterator[Batch]:
        for _, arrays in zip(range(count), source, strict=False):
            yield collate(arrays, self.config, self.tokenizer, self.finder)

    def _learn(self, stage: Stage, batch: Batch) -> dict[str, float]:
        """One step; returns losses and the shares of right answers."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = stage.rate * schedule(self.step, stage.steps)
        report: dict[str, float] = {}
        loss = torch.zeros(())
        with torch.set_grad_enabled("vision" in stage.parts):
            canvas = canvas_features(self.model, batch)
        if "heads" in stage.parts:
            dense, report["symbol"] = self.heads(canvas, batch)
            loss = loss + dense * (DENSE if stage.speaks else 1.0)
            report["dense"] = float(dense.detach())
        if stage.speaks:
            with Watched(self.model.decoder) as seen:
                said = spoken(self.model, canvas, batch)
            size = self.config.image.compression_for(batch.grid).out
            looked = self.lookup(seen, batch, size)
            loss = loss + said.loss + looked * LOOK
            report["lookup"] = float(looked.detach())
            report["loss"] = float(said.loss.detach())
            report.update(accuracy(said.right))
        loss.backward()
        nn.utils.clip_grad_norm_(self._learning(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        for name, value in self.model.state_dict().items():
            self.average[name].lerp_(value, 1 - AVERAGE)
        return report

    def _learning(self) -> Iterable[Tensor]:
        for name in self.stages[self.stage].parts:
            yield from self.parts[name].parameters()

    def _make_optimizers(self) -> list[torch.optim.Optimizer]:
        """Muon for the matrices inside the model; tables, positions, heads and vectors: AdamW."""
        matrices: list[Tensor] = []
        rest: list[Tensor] = []
        for name in self.stages[self.stage].parts:
            for full, parameter in self.parts[name].named_parameters():
                outer = name in ("heads", "lookup") or "table" in full or "positions" in full
                (rest if outer or parameter.dim() < 2 else matrices).append(parameter)
        adam = torch.optim.AdamW(rest, betas=(0.9, 0.98), weight_decay=0.0, foreach=True)
        return [Muon(matrices), adam]


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
    """Every step's report: appended to a CSV file, and smoothed for the progress bar."""

    FIELDS = ("dense", "symbol", "lookup", "loss", "number", "digits", "shape", "colour", "count",
              "relation", "object", "place")  # fmt: skip

    def __init__(self, path: Path) -> None:
        self._path = path
        self._smooth: dict[str, float] = {}
        if not path.exists():
            path.write_text(",".join(("stage", "step", *self.FIELDS)) + "\n", encoding="utf-8")

    def add(self, stage: str, step: int, report: dict[str, float]) -> None:
        for name, value in report.items():
            self._smooth[name] = value + 0.95 * (self._smooth.get(name, value) - value)
        with self._path.open("a", encoding="utf-8", newline="") as file:
            cells = [f"{report[name]:.4f}" if name in report else "" for name in self.FIELDS]
            csv.writer(file).writerow((stage, step, *cells))

    def recent(self) -> str:
        return " ".join(f"{name} {self._smooth[name]:.2f}" for name in self.FIELDS
                        if name in self._smooth)  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "flashvl.train.tiny",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path("build/tiny"), help="state and log")
    parser.add_argument("--export", type=Path, default=ASSETS / "tiny", help="checkpoint folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="times the steps of every stage")
    args = parser.parse_args(argv)
    torch.use_deterministic_algorithms(True)  # else gathers add up in the order threads finish
    stages = tuple(replace(s, steps=max(1, round(s.steps * args.scale))) for s in STAGES)
    trainer = Trainer(args.out, args.seed, stages)
    trainer.run()
    trainer.export(args.export, torch.bfloat16)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
