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
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from flashvl.config import FlashVLConfig
from flashvl.model import FlashVL
from flashvl.tokenizer import Tokenizer
from flashvl.train import loop
from flashvl.train.batches import Batch, collate
from flashvl.train.dataset import stream
from flashvl.train.lookups import LookupHead, MentionFinder, Watched
from flashvl.train.losses import DenseHeads, accuracy, canvas_features, spoken

ASSETS = Path(__file__).parents[1] / "assets"
DENSE = 0.5  # weight of the dense loss beside the next-token loss
LOOK = 0.3  # weight of the lookup loss beside it


@dataclass(frozen=True)
class Stage(loop.Stage):
    """`numbers` is the share of batches that show numbers instead of scenes."""

    numbers: float = 0.5


EVERYTHING = ("vision", "heads", "adapter", "decoder", "lookup")
STAGES = (
    Stage("look", 1500, 2e-3, ("vision", "heads")),
    Stage("talk", 1200, 2e-3, ("adapter", "decoder", "lookup"), numbers=0.4, batch=24),
    Stage("join", 2200, 1e-3, EVERYTHING, numbers=0.5, batch=24),
    Stage("read", 2000, 1e-3, EVERYTHING, numbers=0.6),
    Stage("count", 1800, 8e-4, EVERYTHING, numbers=0.4),
)


class Trainer(loop.Trainer):
    """The tiny model on numbers and scenes of its own canvas sizes."""

    fields = ("dense", "symbol", "lookup", "loss", "number", "digits", "shape", "colour", "count",
              "relation", "object", "place")  # fmt: skip

    def __init__(self, out: Path, seed: int, stages: tuple[Stage, ...], workers: int = 1) -> None:
        self.workers = workers
        self.config = FlashVLConfig.tiny()
        self.tokenizer = Tokenizer.from_pretrained(ASSETS / "tiny")
        self.model = FlashVL.random(self.config, seed, dtype=torch.float32, layout="rows")
        torch.manual_seed(seed)
        self.finder = MentionFinder(self.tokenizer, self.config.decoder.vocab)
        self.heads = DenseHeads(self.config.vision.dim)
        self.lookup = LookupHead(self.config.decoder.dim)
        loop.initialise(self.model)
        parts = {
            "vision": self.model.vision, "adapter": self.model.adapter,
            "decoder": self.model.decoder,
            "heads": self.heads, "lookup": self.lookup,
        }  # fmt: skip
        super().__init__(out, seed, stages, parts, self.model)

    def export(self, folder: Path, dtype: torch.dtype) -> None:
        """Write the averaged weights in the released layout."""
        self.model.load_state_dict(self.average)
        self.model.tokenizer = self.tokenizer
        self.model.to(dtype).save_pretrained(folder)

    def batches(self, stage: Stage, first: int, count: int) -> Iterator[Batch]:
        source = stream(self.seed, first, self.workers, stage.batch, stage.numbers)
        for _, arrays in zip(range(count), source, strict=False):
            yield collate(arrays, self.config, self.tokenizer, self.finder)

    def losses(self, stage: Stage, batch: Batch) -> tuple[Tensor, dict[str, Tensor | float]]:
        report: dict[str, Tensor | float] = {}
        loss = torch.zeros(())
        with torch.set_grad_enabled("vision" in stage.parts):
            canvas = canvas_features(self.model, batch)
        if "heads" in stage.parts:
            targets = (batch.symbol, batch.ordinal, batch.colour)
            dense, report["symbol"] = self.heads(canvas, targets)
            loss = loss + dense * (DENSE if stage.speaks else 1.0)
            report["dense"] = dense.detach()
        if stage.speaks:
            with Watched(self.model.decoder) as seen:
                said = spoken(self.model, canvas, batch)
            size = self.config.image.compression_for(batch.grid).out
            looked = self.lookup(seen, batch, size)
            loss = loss + said.loss + looked * LOOK
            report["lookup"] = looked.detach()
            report["loss"] = said.loss.detach()
            report.update(accuracy(said.right))
        return loss, report


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "flashvl.train.tiny",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path("build/tiny"), help="state and log")
    parser.add_argument("--export", type=Path, default=Path("build/tiny/checkpoint"),
                        help="folder of the checkpoint")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="times the steps of every stage")
    parser.add_argument("--precision", default=loop.EXACT, choices=loop.PRECISIONS,
                        help="of fp32 products; medium: in bf16 where that is faster")  # fmt: skip
    args = parser.parse_args(argv)
    torch.use_deterministic_algorithms(True)  # else gathers add up in the order threads finish
    stages = tuple(replace(s, steps=max(1, round(s.steps * args.scale))) for s in STAGES)
    trainer = Trainer(args.out, args.seed, stages)
    with loop.fp32_products(args.precision):
        trainer.run()
    trainer.export(args.export, torch.bfloat16)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
