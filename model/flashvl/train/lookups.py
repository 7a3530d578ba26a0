"""Where the decoder should look: which words name which objects, and a loss that says so.

"Is the red circle left of the blue square?" takes two lookups before anything can be compared. From
yes and no alone a small decoder had not found that out after 1,000 steps. So one attention head is
told which image tokens hold what a word names, and a linear map must read that object's symbol,
colour and place off the word's state. Both are dropped after training, like the dense heads.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import flashvl_kernels as fvk
from flashvl.chat import IMAGE_FIRST
from flashvl.decoder import Decoder
from flashvl.tokenizer import Tokenizer
from flashvl.train.canvas import COLOUR_CLASSES, COLOURS, SHAPES, SYMBOLS, Mark, Turn

LAYER, HEAD = 1, 0  # the first layer joins "red" to "circle"; the second looks the pair up
MOST = 5  # objects in a picture

_COLOUR, _SHAPE = "|".join(COLOURS), "|".join(SHAPES)
_NAMED = re.compile(rf"\b(?:({_COLOUR}) )?({_SHAPE}|shape)(?:es|s)?\b|\b({_COLOUR})\b")


@dataclass(frozen=True)
class Mention:
    """Token `place` of picture `row` names the marks that stand `ranks`-th from the left."""

    row: int
    place: int
    ranks: tuple[int, ...]


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
    """Finds in the ids of a conversation the tokens that name something."""

    def __init__(self, tokenizer: Tokenizer, vocabulary: int) -> None:
        self._pieces = [tokenizer.decode([i], skip_special=False) for i in range(vocabulary)]

    def find(
        self, row: int, ids: Sequence[int], turns: Sequence[Turn], marks: Sequence[Mark]
    ) -> Iterator[Mention]:
        """In order; of a number read out, the token before each digit names that digit."""
        pieces = [self._pieces[i] if i >= 0 else "\0" for i in ids]
        ends = list(accumulate(map(len, pieces)))
        text, start = "".join(pieces), 0
        for question, answer, kind in turns:
            start = text.index(question, start)
            if kind == "number":
                start = text.index(answer, start)
                for digit in range(len(answer)):
                    yield Mention(row, bisect_right(ends, start + digit) - 1, (digit,))
            for last, ranks in named(question, marks):
                yield Mention(row, bisect_right(ends, start + last), ranks)


class LookupHead(nn.Module):
    """The loss on one attention head, and the map that reads an object off a word's state."""

    SIZES = (SYMBOLS, COLOUR_CLASSES, 2)

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.map = nn.Linear(dim, sum(self.SIZES))

    def watch(self, decoder: Decoder) -> Watched:
        """Record what the watched layer computes, until the `with` block ends."""
        return Watched(decoder)

    def forward(self, seen: Watched, batch: Any, size: tuple[int, int]) -> Tensor:
        """The loss over a batch's mentions; size: rows and columns of the pooled canvas."""
        count = batch.ids.shape[1]
        rows = torch.tensor([m.row for m in batch.mentions])
        places = torch.tensor([m.place for m in batch.mentions])
        meant = torch.zeros(len(batch.mentions), MOST)
        for i, mention in enumerate(batch.mentions):
            meant[i, list(mention.ranks)] = 1.0
        where = object_tokens(batch.ordinal, batch.grid.canvas, size)[rows]
        wanted = (meant[:, :, None] * where).sum(1)
        wanted = wanted / wanted.sum(1, keepdim=True)
        first = int((batch.ids[0] == IMAGE_FIRST).nonzero())
        log_shares = seen.log_attention(batch.ids.shape[0], count, rows, places)
        at_image = log_shares[:, first : first + wanted.shape[1]]
        pointer = -(wanted * at_image).sum(1).mean()
        single = meant.sum(1) == 1
        return pointer + self._read(seen.states(count)[rows, places][single], batch,
                                    rows[single], meant[single].argmax(1))  # fmt: skip

    def _read(self, states: Tensor, batch: Any, rows: Tensor, ranks: Tensor) -> Tensor:
        """Loss of reading symbol, colour and centre of the object with this rank."""
        height, width = batch.grid.canvas
        mine = batch.ordinal[rows] == ranks[:, None] + 1
        patch = mine.float().argmax(1)
        share = mine / mine.sum(1, keepdim=True)
        place = torch.arange(mine.shape[1])
        centre = torch.stack(
            ((share * (place // width)).sum(1), (share * (place % width)).sum(1)), 1
        )
        symbol, colour, found = self.map(states).split(self.SIZES, dim=1)
        picked = torch.arange(len(rows))
        return (
            F.cross_entropy(symbol, batch.symbol[rows][picked, patch])
            + F.cross_entropy(colour, batch.colour[rows][picked, patch])
            + F.mse_loss(found, centre / height * 2 - 1) * 4
        )


class Watched:
    """Keeps the qkv and the states of the watched layer during a forward pass."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder

    def __enter__(self) -> Watched:
        layer = self._decoder.layers[LAYER]
        self._handles = [
            layer.qkv.register_forward_hook(self._keep_qkv),
            layer.register_forward_hook(self._keep_states),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _keep_qkv(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self._qkv = output

    def _keep_states(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self._states = output

    def states(self, count: int) -> Tensor:
        """[B, N, dim] after the watched layer."""
        return self._states.unflatten(0, (-1, count))

    def log_attention(self, batch: int, count: int, rows: Tensor, places: Tensor) -> Tensor:
        """Log of the head's attention from each place to all tokens before it, [M, N]."""
        config = self._decoder.config
        cos, sin = self._decoder.rope(self._qkv.device)
        positions = torch.arange(count).repeat(batch)
        q, k, _ = fvk.rope_qkv(self._qkv, cos, sin, positions, config.heads, config.kv_heads)
        group = config.heads // config.kv_heads
        query = q.unflatten(0, (batch, count))[rows, places, HEAD]
        keys = k.unflatten(0, (batch, count))[rows, :, HEAD // group]
        scores = torch.einsum("md,mnd->mn", query, keys) * config.head_dim**-0.5
        later = torch.arange(count) > places[:, None]
        return scores.masked_fill(later, float("-inf")).log_softmax(1)


def object_tokens(ordinal: Tensor, canvas: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """The share of each pooled token that each object covers, [B, MOST, tokens]."""
    each = torch.arange(1, MOST + 1)[:, None]
    covered = (ordinal[:, None] == each).float().unflatten(2, canvas)
    return F.adaptive_avg_pool2d(covered, size).flatten(2)
