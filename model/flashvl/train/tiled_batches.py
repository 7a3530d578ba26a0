"""From a numbered batch of pictures that need tiles to the tensors of a training step.

`draw` runs in the workers: pictures, dense targets, ids and pointers under the policy of that
batch. `patched` runs beside the model: patch rows, by the library's own op. The text of a printed
word is spelled letter by letter, whatever pieces the tokenizer has: then the k-th token to say is
the k-th letter to look at. Text comes out the same, so nothing else needs to know.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import flashvl_kernels as fvk
from flashvl.chat import encode_conversation
from flashvl.config import FlashVLConfig
from flashvl.tokenizer import Tokenizer
from flashvl.train.batches import conversation
from flashvl.train.canvas import Turn
from flashvl.train.dataset import in_order, to_tensors
from flashvl.train.glyphs import Pointer
from flashvl.train.policies import Policy, framed_size, grid_for, mix, shipped
from flashvl.train.tile_targets import tile_targets, token_shares
from flashvl.train.tiled import SHARES, batch_kind, examples
from flashvl.train.tiled_example import TiledExample
from flashvl_kernels.tiles import TileGrid

SPELLED = ("word", "line")  # kinds of questions whose answers are arbitrary letters
ANSWERS = "<|im_start|>assistant\n"  # what stands before an answer
SHUFFLE_SHARE = 0.25  # of the batches go through the second adapter input
FAMILY = 11  # second word of its random key


@dataclass(frozen=True)
class TiledBatch:
    """One step's input: B pictures of one size under one policy.

    rows: fp32 [B*T, t*t, 3*p*p], patch rows of the tiles. ids: int64 [B, N] with image sentinels,
    padded on the right with 0. answers: bool [B, N], the tokens to predict. symbol, order, colour:
    int64 [B*T, t*t, HALVES], what each half patch shows. kinds: of each question turn, per picture.
    pointed: picture and place [M] of the tokens that are about something, and where that stands,
    fp32 [M, tokens], each row 1 in sum.

    `answers` stays on the host, where they are counted.
    """

    policy: Policy
    grid: TileGrid
    rows: Tensor
    ids: Tensor
    answers: Tensor
    symbol: Tensor
    order: Tensor
    colour: Tensor
    kinds: list[list[str]]
    pointed: tuple[Tensor, Tensor, Tensor]

    def to(self, device: torch.device) -> TiledBatch:
        """What the model computes with, on another device."""
        names = ("rows", "ids", "symbol", "order", "colour")
        moved: dict[str, Any] = {name: getattr(self, name).to(device) for name in names}
        pictures, places, shares = (each.to(device) for each in self.pointed)
        return replace(self, **moved, pointed=(pictures, places, shares))


@dataclass(frozen=True)
class Curriculum:
    """Longest text to read, in characters: from `start` at batch `first` up to `stop` halfway
    through `steps` batches, and `stop` from there on. pages, shares: see tiled.batch_kind.
    shipped_share: see policy_of."""

    first: int
    steps: int
    start: int
    stop: int
    pages: float = 0.0
    shares: tuple[float, ...] = SHARES
    shipped_share: float = 0.0

    def longest(self, number: int) -> int:
        done = min(1.0, 2 * (number - self.first) / max(1, self.steps))
        return self.start + int(done * (self.stop - self.start))


def policy_of(
    config: FlashVLConfig, seed: int, number: int, size: tuple[int, int], shipped_share: float = 0.0
) -> Policy:
    """The policy of a training batch: that which the model is shipped with in a share of
    `shipped_share` of them; of the others, one of the shuffle family in SHUFFLE_SHARE."""
    rng = np.random.default_rng((FAMILY, seed, number))
    shuffled = rng.random() < SHUFFLE_SHARE
    if rng.random() < shipped_share:
        return shipped(config, "pool")
    return mix(config, "shuffle" if shuffled else "pool", seed, number, size)


def stream(
    config: FlashVLConfig, tokenizer: Path, seed: int, start: int, workers: int, batch: int,
    curriculum: Curriculum,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Endless batches from number `start` on, the same for any number of workers; see `draw`."""
    make = partial(draw, config, tokenizer, seed, batch, curriculum)
    for arrays in in_order(make, start, workers):
        yield to_tensors(arrays)


def draw(
    config: FlashVLConfig, tokenizer: Path, seed: int, batch: int, curriculum: Curriculum,
    number: int,
) -> dict[str, Any]:  # fmt: skip
    """Batch `number` as NumPy arrays, pictures inside their policy's margin.

    tokenizer: the checkpoint folder that has its files.
    """
    kind = batch_kind(seed, number, curriculum.pages, curriculum.shares)
    policy = policy_of(config, seed, number, kind[0], curriculum.shipped_share)
    made = examples(seed, batch, number, kind, curriculum.longest(number))
    return drawn_under(made, policy, speller(tokenizer, config.decoder.vocab))


def drawn_under(made: Sequence[TiledExample], policy: Policy, speller: Speller) -> dict[str, Any]:
    """Examples of one size as the arrays of one batch under a policy."""
    size = made[0].size
    grid = grid_for(policy, size)
    targets, pointers, shares = [], [], []
    for example in made:
        glyphs = [
            glyph._replace(box=glyph.box.moved(policy.margin, policy.margin))
            for glyph in example.glyphs
        ]
        found = tile_targets(glyphs, framed_size(policy, size), grid)
        where = token_shares(found.glyph, len(glyphs), policy.image, grid)
        about = [where[list(pointer.glyphs)].sum(0) for pointer in example.pointers]
        # What another glyph covers, or the canvas' border drops, can't be pointed at.
        kept = [index for index, share in enumerate(about) if share.sum() > 0]
        targets.append(found)
        pointers.append([example.pointers[index] for index in kept])
        shares += [about[index] / about[index].sum() for index in kept]
    turns = [(example.turn, *example.more) for example in made]
    return {
        "policy": policy,
        "grid": grid,
        "images": policy.framed(np.stack([example.image for example in made])),
        "turns": turns,
        "pointers": pointers,
        "shares": np.stack(shares) if shares else np.zeros((0, policy.image.tokens(grid))),
        "symbol": np.concatenate([found.symbol for found in targets]),
        "order": np.concatenate([found.order for found in targets]),
        "colour": np.concatenate([found.colour for found in targets]),
        **speller.batch(turns, pointers, policy.image.tokens(grid)),
    }


def patched(arrays: dict[str, Any], config: FlashVLConfig) -> TiledBatch:
    """The batch of what `stream` yields."""
    grid, image = arrays["grid"], arrays["policy"].image
    rows = [
        fvk.image_to_patches(picture, grid, image.mean, image.std, config.vision.patch)
        for picture in arrays["images"]
    ]
    return TiledBatch(
        policy=arrays["policy"],
        grid=grid,
        rows=torch.cat(rows),
        ids=arrays["ids"],
        answers=arrays["answers"],
        symbol=arrays["symbol"],
        order=arrays["order"],
        colour=arrays["colour"],
        kinds=[[kind for _, _, kind in turns] for turns in arrays["turns"]],
        pointed=(arrays["pictures"], arrays["places"], arrays["shares"].float()),
    )


@cache
def speller(folder: Path, vocabulary: int) -> Speller:
    """Read once a process."""
    return Speller(Tokenizer.from_pretrained(folder), vocabulary)


class Speller:
    """Makes ids of conversations, and finds in them the tokens that are about a glyph."""

    def __init__(self, tokenizer: Tokenizer, vocabulary: int) -> None:
        self.tokenizer = tokenizer
        self._pieces = [tokenizer.decode([i], skip_special=False) for i in range(vocabulary)]

    def batch(
        self, turns: Sequence[Sequence[Turn]], pointers: Sequence[Sequence[Pointer]], tokens: int
    ) -> dict[str, np.ndarray]:
        """ids, answers, pictures and places of a TiledBatch whose pictures have `tokens` each."""
        encoded = [self.encode(own, tokens) for own in turns]
        longest = max(len(ids) for ids, _ in encoded)
        ids = np.zeros((len(encoded), longest), np.int64)
        answers = np.zeros((len(encoded), longest), bool)
        pictures: list[int] = []
        places: list[int] = []
        for row, (own, mask) in enumerate(encoded):
            ids[row, : len(own)] = own
            answers[row, : len(mask)] = mask
            found = self.places(own, turns[row], pointers[row])
            pictures += [row] * len(found)
            places += found
        return {
            "ids": ids,
            "answers": answers,
            "pictures": np.array(pictures, np.int64),
            "places": np.array(places, np.int64),
        }

    def encode(self, turns: Sequence[Turn], image_tokens: int) -> tuple[list[int], list[bool]]:
        """Ids of a conversation about one picture, and which are answers; words are spelled."""
        ids, mask = encode_conversation(self.tokenizer, conversation(turns), [image_tokens])
        out: list[int] = []
        answer: list[bool] = []
        at, asked = 0, iter(turns)
        while at < len(ids):
            end = next((n for n in range(at, len(ids)) if mask[n] != mask[at]), len(ids))
            run = ids[at:end]
            if mask[at]:
                _, text, kind = next(asked)
                if kind in SPELLED:  # the last token of the run ends the turn
                    letters = [token for letter in text for token in self.tokenizer.encode(letter)]
                    run = [*letters, run[-1]]
            out += run
            answer += [mask[at]] * len(run)
            at = end
        return out, answer

    def places(
        self, ids: Sequence[int], turns: Sequence[Turn], pointers: Sequence[Pointer]
    ) -> list[int]:
        """The token of each pointer in the ids of its conversation."""
        pieces = [self._pieces[i] if i >= 0 else "\0" for i in ids]
        ends = list(accumulate(map(len, pieces)))
        text, start = "".join(pieces), 0
        starts = []
        for question, _, _ in turns:
            asked = text.index(question, start)
            start = text.index(ANSWERS, asked + len(question)) + len(ANSWERS)
            starts.append((asked, start))
        return [
            bisect_right(ends, starts[pointer.turn][pointer.in_answer] + pointer.at)
            - pointer.in_answer
            for pointer in pointers
        ]
