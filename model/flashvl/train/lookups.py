"""Where the decoder should look: which words name which objects, and a loss that says so.

"Is the red circle left of the blue square?" takes two lookups before anything can be compared. From
yes and no alone a small decoder does not find that out soon. So one attention head is told which
image tokens hold what a word names, and linear maps must read that object's symbol, colour and
place off the word's state. They are dropped after training, like the dense heads.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import flashvl_kernels as fvk
from flashvl.chat import IMAGE_FIRST
from flashvl.decoder import Decoder, DecoderLayer
from flashvl.tokenizer import Tokenizer
from flashvl.train.canvas import COLOUR_CLASSES, COLOURS, SHAPES, SYMBOLS, Mark, Turn
from flashvl.train.scenes import RELATIONS

LAYER, HEAD = 1, 0  # the first layer joins "red" to "circle"; the second looks the pair up
COMPARED = 2  # the layer after which the token before a relation's answer knows the difference
MOST = 5  # objects in a picture

_COLOUR, _SHAPE = "|".join(COLOURS), "|".join(SHAPES)
_NAMED = re.compile(rf"\b(?:({_COLOUR}) )?({_SHAPE}|shape)(?:es|s)?\b|\b({_COLOUR})\b")


@dataclass(frozen=True)
class Mention:
    """Token `place` of picture `row` names the marks that stand `ranks`-th from the left."""

    row: int
    place: int
    ranks: tuple[int, ...]


@dataclass(frozen=True)
class Comparison:
    """Token `place` of picture `row` stands before the yes or no about two marks' places.

    word: which relation was asked, an index into RELATIONS.
    """

    row: int
    place: int
    first: int
    second: int
    word: int


def ranks_of(marks: Sequence[Mark]) -> list[int]:
    """Each mark's place in the line, from the left, as the ordinal targets count (less one)."""
    order = sorted(range(len(marks)), key=lambda i: marks[i].centre[1])
    return [order.index(i) for i in range(len(marks))]


def named(question: str, marks: Sequence[Mark]) -> Iterator[tuple[int, tuple[int, ...]]]:
    """(index of the last character, ranks of the marks meant) of every name in a question."""
    ranks = ranks_of(marks)
    for match in _NAMED.finditer(question):
        colour, shape = match[1] or match[3], match[2]
        if shape == "shape" and colour is None and "How many" not in question:
            continue  # "What shape is red?"
        meant = tuple(
            rank
            for rank, mark in zip(ranks, marks, strict=True)
            if (colour is None or mark.colour == colour) and shape in (None, "shape", mark.name)
        )
        if meant:
            yield match.end() - 1, meant


class MentionFinder:
    """Finds in the ids of a conversation the tokens that name or compare something."""

    def __init__(self, tokenizer: Tokenizer, vocabulary: int) -> None:
        self._pieces = [tokenizer.decode([i], skip_special=False) for i in range(vocabulary)]

    def find(
        self, row: int, ids: Sequence[int], turns: Sequence[Turn], marks: Sequence[Mark]
    ) -> Iterator[Mention | Comparison]:
        """In order; of a number read out, the token before each digit names that digit."""
        pieces = [self._pieces[i] if i >= 0 else "\0" for i in ids]
        ends = list(accumulate(map(len, pieces)))
        text, start = "".join(pieces), 0
        for question, answer, kind in turns:
            asked = text.index(question, start)
            start = text.index(answer, asked + len(question))
            before = bisect_right(ends, start) - 1
            if kind == "number":
                for digit in range(len(answer)):
                    yield Mention(row, before + digit, (digit,))
            names = list(named(question, marks))
            for last, ranks in names:
                yield Mention(row, bisect_right(ends, asked + last), ranks)
            if kind == "relation":
                (_, (first,)), (_, (second,)) = names
                word = next(i for i, relation in enumerate(RELATIONS) if relation in question)
                yield Comparison(row, before, first, second, word)


class LookupHead(nn.Module):
    """The loss on one attention head, and the maps that read objects off the decoder's states."""

    SIZES = (SYMBOLS, COLOUR_CLASSES, 2)

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.map = nn.Linear(dim, sum(self.SIZES))
        self.difference = nn.Linear(dim, 2)
        self.word = nn.Linear(dim, len(RELATIONS))

    def forward(self, seen: Watched, batch: Any, size: tuple[int, int]) -> Tensor:
        """The loss over what the MentionFinder found in a `batches.Batch`; size: that of the pooled
        canvas."""
        mentions = [m for m in batch.mentions if isinstance(m, Mention)]
        rows = torch.tensor([m.row for m in mentions])
        places = torch.tensor([m.place for m in mentions])
        meant = torch.zeros(len(mentions), MOST)
        for i, mention in enumerate(mentions):
            meant[i, list(mention.ranks)] = 1.0
        loss = self._point(seen, batch, size, rows, places, meant)
        single = meant.sum(1) == 1
        states = seen.states(LAYER, batch.ids.shape[1])[rows, places]
        loss = loss + self._read(states[single], batch, rows[single], meant[single].argmax(1))
        compared = [m for m in batch.mentions if isinstance(m, Comparison)]
        return loss + self._compare(seen, batch, compared) if compared else loss

    def _point(
        self, seen: Watched, batch: Any, size: tuple[int, int], rows: Tensor, places: Tensor,
        meant: Tensor,
    ) -> Tensor:  # fmt: skip
        """How far the head's attention is from the tokens of what is meant."""
        where = object_tokens(batch.ordinal, batch.grid.canvas, size)[rows]
        wanted = (meant[:, :, None] * where).sum(1)
        wanted = wanted / wanted.sum(1, keepdim=True)
        return pointing(seen, batch.ids, rows, places, wanted)

    def _read(self, states: Tensor, batch: Any, rows: Tensor, ranks: Tensor) -> Tensor:
        """Loss of reading symbol, colour and centre of the object with this rank."""
        symbol, colour, found = self.map(states).split(self.SIZES, dim=1)
        patch = (batch.ordinal[rows] == ranks[:, None] + 1).float().argmax(1)
        picked = torch.arange(len(rows))
        return (
            F.cross_entropy(symbol, batch.symbol[rows][picked, patch])
            + F.cross_entropy(colour, batch.colour[rows][picked, patch])
            + F.mse_loss(found, centres(batch, rows, ranks)) * 4
        )

    def _compare(self, seen: Watched, batch: Any, compared: list[Comparison]) -> Tensor:
        """Loss of reading how far the first object is from the second, down and right, and the word
        between them. Yes or no turns on both; neither alone tells anything about it, so its own
        gradient finds neither."""
        rows = torch.tensor([m.row for m in compared])
        places = torch.tensor([m.place for m in compared])
        first = centres(batch, rows, torch.tensor([m.first for m in compared]))
        second = centres(batch, rows, torch.tensor([m.second for m in compared]))
        states = seen.states(COMPARED, batch.ids.shape[1])[rows, places]
        asked = F.cross_entropy(self.word(states), torch.tensor([m.word for m in compared]))
        return asked + F.mse_loss(self.difference(states), first - second) * 4


def pointing(seen: Watched, ids: Tensor, rows: Tensor, places: Tensor, wanted: Tensor) -> Tensor:
    """How far the watched head's attention, from token `places[m]` of picture `rows[m]`, is from
    the shares `wanted` [M, tokens] of the picture's tokens. ids: of a batch whose pictures all
    stand at the same place."""
    first = int((ids[0] == IMAGE_FIRST).nonzero())
    log_shares = seen.log_attention(ids.shape[0], ids.shape[1], rows, places)
    at_image = log_shares[:, first : first + wanted.shape[1]]
    return -(wanted * at_image).sum(1).mean()


def centres(batch: Any, rows: Tensor, ranks: Tensor) -> Tensor:
    """Centre (down, right) of objects by their patches, [M, 2]; down goes from -1 to 1."""
    height, width = batch.grid.canvas
    mine = batch.ordinal[rows] == ranks[:, None] + 1
    share = mine / mine.sum(1, keepdim=True)
    place = torch.arange(mine.shape[1])
    down, right = (share * (place // width)).sum(1), (share * (place % width)).sum(1)
    return torch.stack((down, right), 1) / height * 2 - 1


class Watched:
    """Keeps the qkv and the states of the watched layers during a forward pass, in a `with`."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._states: dict[int, Tensor] = {}

    def __enter__(self) -> Watched:
        layers = [cast(DecoderLayer, layer) for layer in self._decoder.layers]
        self._handles = [layers[LAYER].qkv.register_forward_hook(self._keep_qkv)]
        for index in (LAYER, COMPARED):
            self._handles.append(layers[index].register_forward_hook(partial(self._keep, index)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _keep_qkv(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self._qkv = output

    def _keep(self, index: int, module: nn.Module, args: Any, output: Tensor) -> None:
        self._states[index] = output

    def states(self, layer: int, count: int) -> Tensor:
        """[B, N, dim] after a watched layer."""
        return self._states[layer].unflatten(0, (-1, count))

    def log_attention(self, batch: int, count: int, rows: Tensor, places: Tensor) -> Tensor:
        """Log of the head's attention from each place to all tokens before it, [M, N]."""
        config = self._decoder.config
        cos, sin = self._decoder.rope(self._qkv.device)
        counted = torch.arange(count, device=places.device)
        positions = counted.repeat(batch)
        q, k, _ = fvk.rope_qkv(self._qkv, cos, sin, positions, config.heads, config.kv_heads)
        group = config.heads // config.kv_heads
        query = q.unflatten(0, (batch, count))[rows, places, HEAD]
        keys = k.unflatten(0, (batch, count))[rows, :, HEAD // group]
        scores = torch.einsum("md,mnd->mn", query, keys) * config.head_dim**-0.5
        later = counted > places[:, None]
        return scores.masked_fill(later, float("-inf")).log_softmax(1)


def object_tokens(ordinal: Tensor, canvas: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """The share of each pooled token that each object covers, [B, MOST, tokens]."""
    each = torch.arange(1, MOST + 1)[:, None]
    covered = (ordinal[:, None] == each).float().unflatten(2, canvas)
    return F.adaptive_avg_pool2d(covered, size).flatten(2)
