"""The two losses of the tiny model, and what it got right.

Next-token loss on the answers, and a dense loss on the encoder: which symbol, colour and place in
the line covers each patch of the canvas. The dense heads are dropped after training.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import flashvl_kernels as fvk
from flashvl.model import FlashVL
from flashvl.train.batches import Batch
from flashvl.train.canvas import COLOUR_CLASSES, ORDINALS, SYMBOLS

BACKGROUND_WEIGHT = 0.3  # two patches in three are background; at weight 1 they drown the symbols


class DenseHeads(nn.Module):
    """One linear map from a patch's feature to the classes of each of its `pieces`.

    sizes: how many classes each target has; class 0 is the background.
    """

    SIZES = (SYMBOLS, ORDINALS, COLOUR_CLASSES)

    def __init__(self, dim: int, sizes: tuple[int, ...] = SIZES, pieces: int = 1) -> None:
        super().__init__()
        self.sizes = sizes
        self.map = nn.Linear(dim, pieces * sum(sizes))

    def forward(self, features: Tensor, targets: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """(loss, share of the covered pieces whose first target is right, a number).

        features [B, P, dim]; each of targets int64, B * P * pieces of them, -100 where not to be
        known.
        """
        logits = self.map(features).view(-1, sum(self.sizes)).split(self.sizes, dim=-1)
        loss = features.new_zeros(())
        for classes, target in zip(logits, targets, strict=True):
            weight = classes.new_ones(classes.shape[-1])
            weight[0] = BACKGROUND_WEIGHT
            loss = loss + F.cross_entropy(classes, target.flatten(), weight)
        first = targets[0].flatten()
        covered = first > 0
        right = (logits[0].argmax(-1) == first) & covered
        return loss, right.sum() / covered.sum()


def canvas_features(model: FlashVL, batch: Batch) -> Tensor:
    """Stitched encoder features [B, P, C]."""
    return fvk.stitch_tiles(model.vision(batch.rows), batch.grid)


@dataclass(frozen=True)
class Spoken:
    """Next-token loss over the answers, and for each question turn whether all of it was right."""

    loss: Tensor
    right: list[tuple[str, bool]]


def spoken(model: FlashVL, canvas: Tensor, batch: Batch) -> Spoken:
    """Run adapter and decoder over whole conversations."""
    how = model.config.image.compression_for(batch.grid)
    return answered(model, model.adapter(canvas, how, size=batch.grid.canvas), batch)


class Conversations(Protocol):
    """What the next-token loss needs of a batch; see `batches.Batch`. answers may stay on the host,
    where they are counted, when ids are elsewhere."""

    @property
    def ids(self) -> Tensor: ...

    @property
    def answers(self) -> Tensor: ...

    @property
    def kinds(self) -> list[list[str]]: ...


def answered(model: FlashVL, rows: Tensor, batch: Conversations) -> Spoken:
    """Run the decoder over whole conversations, about image rows [B, tokens, hidden].

    A turn counts as right when every token of its answer is the most likely one given the tokens
    before it, which is when greedy decoding would write exactly that answer.
    """
    embeds = model.embed(batch.ids, rows.flatten(0, 1))
    hidden = model.decoder.forward_train(embeds)
    predicts = batch.answers[:, 1:].cpu()
    # Places and weights are found on the host: a mask would make it wait for a GPU to count.
    before = F.pad(predicts, (0, 1)).flatten().nonzero().squeeze(1).to(hidden.device)
    logits = model.decoder.logits(hidden.flatten(0, 1).index_select(0, before))
    wanted = batch.ids.flatten().index_select(0, before + 1)
    each = F.cross_entropy(logits, wanted, reduction="none")
    loss = (each * _turn_shares(predicts)[predicts].to(each.device)).sum()
    hits = torch.zeros_like(predicts)
    hits[predicts] = (logits.detach().argmax(-1) == wanted).cpu()
    return Spoken(loss, _turns_right(predicts, hits, batch.kinds))


def _turn_numbers(predicts: Tensor) -> Tensor:
    """Which question turn of its row each answer token belongs to, from 0."""
    starts = predicts & ~F.pad(predicts, (1, -1))
    return starts.cumsum(1) - 1


def _turn_shares(predicts: Tensor) -> Tensor:
    """The weight of each answer token: every turn weighs the same, however long its answer, and
    all of them together 1. A "yes" is one token beside the four of "bottom right"."""
    rows, most = predicts.shape[0], predicts.shape[1]
    turn = _turn_numbers(predicts) + most * torch.arange(rows)[:, None]
    length = torch.bincount(turn[predicts], minlength=rows * most)
    shares = torch.zeros(predicts.shape)
    shares[predicts] = 1.0 / length[turn[predicts]]
    return shares / shares.sum()


def _turns_right(predicts: Tensor, hits: Tensor, kinds: list[list[str]]) -> list[tuple[str, bool]]:
    results = []
    turns = _turn_numbers(predicts)
    rows = zip(predicts, hits, turns, kinds, strict=True)
    for row_predicts, row_hits, turn, row_kinds in rows:
        for number, kind in enumerate(row_kinds):
            mine = row_predicts & (turn == number)
            results.append((kind, bool(row_hits[mine].all())))
    return results


def accuracy(right: list[tuple[str, bool]]) -> dict[str, float]:
    """Share of right turns per kind of question."""
    by_kind: dict[str, list[bool]] = defaultdict(list)
    for kind, hit in right:
        by_kind[kind].append(hit)
    return {kind: sum(hits) / len(hits) for kind, hits in sorted(by_kind.items())}
