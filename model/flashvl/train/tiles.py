"""Trains the tiny model on pictures that need tiles, under a random mix of the study's policies.

    python -m flashvl.train.tiles                    # to the end; a killed run goes on where it was
    python -m flashvl.train.tiles --minutes 90       # as many steps as fit, settled at the start
    python -m flashvl.train.tiles --stop-after 30    # half an hour of it; the same command goes on
    python -m flashvl.train.tiles --first spell      # on from what is shipped, with that stage
    python -m flashvl.train.tiles --precision medium    # products in bf16, where the CPU has those
    python -m flashvl.train.tiles --device cuda --workers 12    # and so does any other device

Stages as in the paper (arXiv 2505.09498): the adapter alone between an encoder and a decoder that
are there already (`flashvl.train.tiny`'s), then everything, then an instruction mix; before them
the encoder learns print, from dense targets. Seven more stages are mostly words, from the second on
half under weights as int4 leaves them, in the last two of them two batches in five under the policy
that is shipped. Three of these start from the mean of the last ends before them, and the mean of
the last three is what is exported. Rates fall to 0 in each. Texts grow with the steps: from two
characters to eight.

What was open, and how it was settled:

(a) Overlapping tiles span less of a picture at a fixed number of tiles, so their picture is scaled
    down. The study holds source and resolution equal by nine overlapping tiles whose canvas is that
    of four plain ones (policies.py, the resolution axis), reports the four-tile policies beside
    them, and gives tokens and FLOPs of both. Both are part of the mix.
(b) Pixel shuffle has 4 C channels a token. One model with two adapter inputs: norm and first map
    are apart, the other two maps shared, 132 thousand parameters more. A second model trained alike
    would double the three hours and differ in its encoder too. The second input gets a quarter of
    the batches, as many as it would as one of four compressions. Both inputs start untrained.
(c) Nothing else changes. The tokenizer has all letters, and words are spelled in training
    (tiled_batches.py), so its merges don't matter. The configuration written here is that of the
    policy that is shipped; `FlashVLConfig.tiny` stays what it is, and its 1024 positions are enough
    for 64 tokens and the text.

Written to --out: state.pt, log.csv (a row a step), progress.csv (exact match on held-out questions
that the study does not use), curves.png; and at the end, to --export, a checkpoint in the released
layout, with SECOND beside it: what the other adapter input has of its own.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from flashvl.adapter import Adapter
from flashvl.checkpoint import CheckpointError
from flashvl.config import FlashVLConfig
from flashvl.model import FlashVL
from flashvl.parameters import resolve_device
from flashvl.tokenizer import Tokenizer
from flashvl.train import curves, exam, loop, tiled_heldout
from flashvl.train.canvas import COLOUR_CLASSES
from flashvl.train.dataset import ahead
from flashvl.train.glyphs import GLYPHS, ORDERS
from flashvl.train.lookups import Watched, pointing
from flashvl.train.losses import DenseHeads, accuracy, answered
from flashvl.train.policies import Policy, config_for, shipped
from flashvl.train.rounding import rounded
from flashvl.train.tile_targets import HALVES
from flashvl.train.tiled import SHARES
from flashvl.train.tiled_batches import Curriculum, TiledBatch, patched, stream
from flashvl.train.tiled_example import TiledExample
from flashvl.train.tiny import ASSETS
from flashvl_kernels import backend
from flashvl_kernels.tiles import TileGrid

DENSE = 0.5  # weight of the dense loss beside the next-token loss
POINT = 0.3  # weight of the pointing loss beside it
RANDOM = "random"
SECOND = "pixel_shuffle.safetensors"
PROGRESS_EVERY = 1000  # steps
PROGRESS_CASES, PROGRESS_SEED = 50, 611  # of each family
# Steps of each stage that --minutes runs: the first few wait for workers that are loading fonts;
# policies differ sixfold in FLOPs (docs/stitching.md), so one step says little of the next.
UNTIMED, TIMED = 4, 12


@dataclass(frozen=True)
class Stage(loop.Stage):
    """`texts`: the longest text to read, in characters, at first and from halfway on. pages,
    shares: see tiled.batch_kind. shipped_share: see tiled_batches.policy_of. packed: every second
    step learns under weights as this format leaves them (see rounding.py)."""

    texts: tuple[int, int] = (8, 8)
    pages: float = 0.0
    shares: tuple[float, ...] = SHARES
    shipped_share: float = 0.0
    packed: str | None = None


EVERYTHING = ("vision", "heads", "adapter", "decoder")
STAGES = (
    Stage("look", 3200, 1e-3, ("vision", "heads"), 24, (4, 8), pages=0.7),
    Stage("align", 320, 1e-3, ("adapter",), 24, (2, 2)),
    Stage("join", 5120, 1e-3, EVERYTHING, 24, (2, 8), pages=0.2),
    Stage("mix", 5120, 1e-3, EVERYTHING, 24, pages=0.1),
    Stage("read", 1000, 3e-4, EVERYTHING, 24, pages=0.1, shares=(0.55, 0.13, 0.12, 0.2),
          cycle=True),
    Stage("pack", 3000, 7e-4, EVERYTHING, 24, pages=0.3, shares=(0.55, 0.15, 0.1, 0.2),
          packed="int4", cycle=True),
    Stage("settle", 1000, 3e-4, EVERYTHING, 24, pages=0.1, shares=(0.4, 0.28, 0.15, 0.17),
          packed="int4", cycle=True, from_cycles=True),
    Stage("spell", 3500, 6e-4, EVERYTHING, 24, pages=0.3, shares=(0.52, 0.2, 0.1, 0.18),
          packed="int4", cycle=True, from_cycles=True),
    Stage("rest", 1200, 3e-4, EVERYTHING, 24, pages=0.1, shares=(0.45, 0.25, 0.12, 0.18),
          packed="int4", cycle=True),
    Stage("own", 3400, 6e-4, EVERYTHING, 24, pages=0.3, shares=(0.52, 0.2, 0.1, 0.18),
          shipped_share=0.4, packed="int4", cycle=True, from_cycles=True),
    Stage("last", 1500, 3e-4, EVERYTHING, 24, pages=0.1, shares=(0.45, 0.25, 0.12, 0.18),
          shipped_share=0.4, packed="int4", cycle=True),
)  # fmt: skip


class Trainer(loop.Trainer):
    """The tiny model with two adapter inputs, and where its training stands.

    start: the checkpoint that encoder and decoder come from, or "random" for none. first: the name
    of the stage to begin with; where that is not the first one, the adapter inputs come from
    `start`, too (see `export`), and only the heads of the dense losses are new. scale: times the
    steps of every stage. pictures: in a step, by default what the stages say. cases: held-out
    examples to watch; by default drawn. device: where it computes. A state goes on under any
    device and backend; bitwise as if it had not stopped where both stay, on a CPU.
    """

    stages: tuple[Stage, ...]
    fields = ("dense", "symbol", "point", "loss", "word", "printed", "price", "line", "handwritten",
              "digits", "shape", "colour", "count", "relation", "object", "place")  # fmt: skip

    def __init__(
        self,
        out: Path,
        seed: int,
        start: str = "tiny",
        scale: float = 1.0,
        workers: int = 1,
        stages: tuple[Stage, ...] = STAGES,
        cases: list[TiledExample] | None = None,
        pictures: int | None = None,
        device: torch.device | str = "cpu",
        first: str = "",
    ) -> None:
        if pictures is not None and pictures < 1:
            raise ValueError(f"pictures is {pictures}; a step needs 1 or more")
        names = [stage.name for stage in stages]
        self.first = first or names[0]
        if self.first not in names:
            raise ValueError(f"first is {first!r}; needs a stage: {', '.join(names)}")
        begin = names.index(self.first)
        if begin and start == RANDOM:
            raise ValueError(
                f"first is {first!r}, which needs a trained start, not {RANDOM!r}: pass a "
                f"checkpoint, or leave first out"
            )
        self.start, self.scale, self.workers = start, scale, workers
        self._cases = cases
        self.device = resolve_device(device)
        self.config = FlashVLConfig.tiny()
        self.tokenizer = Tokenizer.from_pretrained(ASSETS / "tiny")
        self.model = FlashVL.random(self.config, seed, dtype=torch.float32, layout="rows")
        torch.manual_seed(seed)
        loop.initialise(self.model)
        if start != RANDOM:
            before = FlashVL.from_pretrained(start, dtype=torch.float32, layout="rows")
            self.model.vision.load_state_dict(before.vision.state_dict())
            self.model.decoder.load_state_dict(before.decoder.state_dict())
        self.adapters = self._two_inputs()
        if begin:
            assert before.folder is not None
            other = second_input(before.folder, torch.float32, "rows")
            self.adapters["pool"].load_state_dict(before.adapter.state_dict())
            self.adapters["shuffle"].load_state_dict(other.adapter.state_dict())
        self.heads = DenseHeads(self.config.vision.dim, (GLYPHS, ORDERS, COLOUR_CLASSES), HALVES)
        kept = {"vision": self.model.vision, "adapter": self.adapters,
                "decoder": self.model.decoder}  # fmt: skip
        scaled = tuple(
            dataclasses.replace(
                stage, steps=max(1, round(stage.steps * scale)), batch=pictures or stage.batch
            )
            for stage in stages
        )
        parts = {**kept, "heads": self.heads}
        for part in parts.values():
            part.to(self.device)
        super().__init__(out, seed, scaled, parts, nn.ModuleDict(kept))
        self.enter(begin)

    def _two_inputs(self) -> nn.ModuleDict:
        """The model's adapter, and one that shares all but its norm and first map."""
        second = Adapter(_config("shuffle").adapter)
        loop.initialise(second)
        second.fc2, second.proj = self.model.adapter.fc2, self.model.adapter.proj
        return nn.ModuleDict({"pool": self.model.adapter, "shuffle": second})

    def identity(self) -> dict[str, Any]:
        return {"seed": self.seed, "start": self.start, "first": self.first, "scale": self.scale,
                "pictures": self.stages[0].batch}  # fmt: skip

    def batches(self, stage: Stage, first: int, count: int) -> Iterator[TiledBatch]:
        curriculum = Curriculum(
            first - self.step,
            stage.steps,
            *stage.texts,
            stage.pages,
            stage.shares,
            stage.shipped_share,
        )
        source = stream(
            self.config, ASSETS / "tiny", self.seed, first, self.workers, stage.batch, curriculum
        )

        def made(arrays: dict[str, Any]) -> TiledBatch:
            with backend("auto"):  # the host's work, whatever the model runs on
                return patched(arrays, self.config).to(self.device)

        found = map(made, islice(source, count))
        yield from found if self.device.type == "cpu" else ahead(found)

    def losses(self, stage: Stage, batch: TiledBatch) -> tuple[Tensor, dict[str, Tensor | float]]:
        report: dict[str, Tensor | float] = {}
        loss = torch.zeros((), device=self.device)
        with torch.set_grad_enabled("vision" in stage.parts):
            features = self.model.vision(batch.rows)
        if "heads" in stage.parts:
            targets = (batch.symbol, batch.order, batch.colour)
            dense, report["symbol"] = self.heads(features, targets)
            loss = loss + dense * (DENSE if stage.speaks else 1.0)
            report["dense"] = dense.detach()
        if stage.speaks:
            adapter = self.adapters[batch.policy.family]
            rows = image_rows(adapter, features, batch.policy, batch.grid)
            with Watched(self.model.decoder) as seen:
                said = answered(self.model, rows, batch)
            loss = loss + said.loss
            report["loss"] = said.loss.detach()
            if len(batch.pointed[0]):
                pointed = pointing(seen, batch.ids, *batch.pointed)
                loss = loss + pointed * POINT
                report["point"] = pointed.detach()
            report.update(accuracy(said.right))
        return loss, report

    def gradients(self, stage: Stage, batch: TiledBatch) -> dict[str, Tensor | float]:
        if stage.packed is None or self.step % 2 == 0:
            return super().gradients(stage, batch)
        with rounded(self.kept, stage.packed):
            return super().gradients(stage, batch)

    def checkpoint(self, family: str) -> FlashVL:
        """The averaged weights as a model of its own, through one of the adapter inputs."""
        model = FlashVL.random(_config(family), 0, dtype=torch.float32, layout="rows")
        within = {"vision.": "vision.", "decoder.": "decoder.", f"adapter.{family}.": "adapter."}
        state = {
            new + name.removeprefix(old): value
            for name, value in self.average.items()
            for old, new in within.items()
            if name.startswith(old)
        }
        model.load_state_dict(state)
        model.tokenizer, model.folder = self.tokenizer, ASSETS / "tiny"  # whose files are saved too
        return model

    def export(self, folder: Path) -> None:
        """Write the checkpoint, and what the second adapter input has of its own."""
        model = self.checkpoint("pool").to(torch.bfloat16)
        model.save_pretrained(folder)
        first = model.released_state()
        second = self.checkpoint("shuffle").to(torch.bfloat16).released_state()
        own = {
            name: value.contiguous() for name, value in second.items()
            if value.shape != first[name].shape or not value.equal(first[name])
        }  # fmt: skip
        save_file(own, folder / SECOND)

    def watch(self, stage: Stage) -> None:
        if self.step % PROGRESS_EVERY and self.step < stage.steps:
            return
        if stage.speaks:
            if self._cases is None:
                self._cases = tiled_heldout.make_all_cases(PROGRESS_CASES, PROGRESS_SEED)
            model = self.checkpoint("pool").to(self.device)
            hits = exam.right(model, _policy("pool"), self._cases)
            shares = {
                family: good / total
                for family, (good, total) in exam.by_family(self._cases, hits).items()
            }
            curves.add_progress(self.out / "progress.csv", self.steps_done, shares)
        curves.draw(self.out)


def image_rows(adapter: nn.Module, features: Tensor, policy: Policy, grid: TileGrid) -> Tensor:
    """Decoder rows [B, tokens, hidden] of the tiles' features [B*T, t*t, C] under a policy."""
    how, size = policy.image.compression_for(grid), policy.image.units(grid)
    if policy.image.stitch:
        return adapter(features, how, grid=grid)
    rows = adapter(features, how, size=size)
    return rows.reshape(-1, grid.tiles * rows.shape[1], rows.shape[2])


def second_input(
    folder: Path, dtype: torch.dtype = torch.bfloat16, layout: str = "auto"
) -> FlashVL:
    """The checkpoint in `folder` behind its other adapter input; see `FlashVL.from_pretrained`."""
    if not (folder / SECOND).exists():
        raise CheckpointError(
            f"{folder} has no {SECOND}; pass a folder that flashvl.train.tiles wrote (--export)"
        )
    first = FlashVL.from_pretrained(folder, dtype=dtype, layout=layout)
    model = FlashVL.random(_config("shuffle"), dtype=dtype, layout=layout)
    model.load_weights({**first.released_state(), **load_file(folder / SECOND)})
    model.tokenizer, model.folder = first.tokenizer, folder
    return model


def _policy(family: str) -> Policy:
    return shipped(FlashVLConfig.tiny(), family)


def _config(family: str) -> FlashVLConfig:
    return config_for(FlashVLConfig.tiny(), _policy(family))


def scale_for(minutes: float, make: Callable[[Path, float], Trainer]) -> float:
    """How far the stages must be scaled to end after `minutes`, from the time of a few steps of
    each; at most 1. make: the trainer, from its folder and scale."""
    seconds = 0.0
    with TemporaryDirectory() as folder:
        trial = make(Path(folder), 1.0)
        for number in range(trial.stage, len(trial.stages)):
            stage = trial.stages[number]
            trial.enter(number)
            trial.step = stage.steps // 2  # where texts are as long as they get
            source = trial.batches(stage, trial.steps_done, UNTIMED + TIMED)
            for batch in islice(source, UNTIMED):
                trial.learn(stage, batch)
            begin = time.monotonic()
            for batch in source:
                trial.learn(stage, batch)
            seconds += stage.steps * (time.monotonic() - begin) / TIMED
    return min(1.0, math.floor(100 * minutes * 60 / seconds) / 100)


def settled_scale(args: argparse.Namespace, make: Callable[[Path, float], Trainer]) -> float:
    """The scale of the run that the state belongs to, else what the options ask for."""
    state = args.out / "state.pt"
    if args.minutes is None:
        return float(args.scale)
    if state.exists():
        return float(torch.load(state, weights_only=True, map_location="cpu")["identity"]["scale"])
    scale = scale_for(args.minutes, make)
    if scale <= 0:
        raise SystemExit(f"--minutes {args.minutes} is not enough for one step in a hundred")
    print(f"{args.minutes:g} minutes: {scale:.2f} of the steps from {args.first!r} on")
    return scale


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "flashvl.train.tiles",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path("build/tiles"), help="all that is written")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--export", type=Path, default=Path("build/tiles/checkpoint"),
                        help="folder of the checkpoint")  # fmt: skip
    parser.add_argument("--start", default="tiny", metavar="CHECKPOINT",
                        help="of encoder and decoder: a folder, tiny or random")  # fmt: skip
    names = [stage.name for stage in STAGES]
    parser.add_argument("--first", default=names[0], choices=names,
                        help="stage to begin with; a later one takes all of --start")  # fmt: skip
    parser.add_argument("--scale", type=float, default=1.0, help="times the steps of every stage")
    parser.add_argument("--minutes", type=float, help="scale the steps to end after that many")
    parser.add_argument("--stop-after", type=float, default=math.inf, metavar="MINUTES",
                        help="save and stop after that many, to go on another time")  # fmt: skip
    parser.add_argument("--workers", type=int, default=1, help="processes that draw pictures")
    parser.add_argument("--backend", default="auto", help="of the ops; torch is plain PyTorch")
    parser.add_argument("--precision", default=loop.EXACT, choices=loop.PRECISIONS,
                        help="of fp32 products; medium: in bf16 where that is faster")  # fmt: skip
    parser.add_argument("--pictures", type=int, default=24, help="in a step")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    args = parser.parse_args(argv)
    if args.device == "cpu":
        torch.use_deterministic_algorithms(True)  # else gathers add up in the order threads finish
    begin = time.monotonic()

    def make(out: Path, scale: float) -> Trainer:
        return Trainer(
            out, args.seed, args.start, scale, args.workers,
            pictures=args.pictures, device=args.device, first=args.first,
        )  # fmt: skip

    with backend(args.backend), loop.fp32_products(args.precision):
        trainer = make(args.out, settled_scale(args, make))
        finished = trainer.run(args.stop_after * 60 - (time.monotonic() - begin))
    if not finished:
        print(f"stopped after {trainer.steps_done} steps; the same command goes on")
        return 0
    trainer.export(args.export)
    print(f"next: python -m flashvl.train.study --from {args.export}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
