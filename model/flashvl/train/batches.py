"""From a batch of pictures and question turns to the tensors of a training step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import flashvl_kernels as fvk
from flashvl.chat import encode_conversation
from flashvl.config import FlashVLConfig
from flashvl.tokenizer import Tokenizer
from flashvl.train.lookups import Comparison, Mention, MentionFinder
from flashvl_kernels.tiles import TileGrid


@dataclass(frozen=True)
class Batch:
    """One step's input; B pictures of one canvas size, so one grid.

    rows: fp32 [B*T, t*t, 3*p*p], patch rows of the tiles. ids: int64 [B, N] with image sentinels,
    padded on the right with 0. answers: bool [B, N], the tokens to predict. symbol, ordinal,
    colour: int64 [B, P], what covers each canvas patch. kinds: of each question turn, per picture.
    mentions: the tokens that name or compare something in a picture.
    """

    rows: Tensor
    grid: TileGrid
    ids: Tensor
    answers: Tensor
    symbol: Tensor
    ordinal: Tensor
    colour: Tensor
    kinds: list[list[str]]
    mentions: list[Mention | Comparison]


def grid_of(config: FlashVLConfig, height: int, width: int) -> TileGrid:
    """The grid whose canvas is exactly height x width pixels."""
    for rows, cols in config.image.grids or ():
        grid = config.image.grid(rows, cols)
        pixels = tuple(side * config.vision.patch for side in grid.canvas_full)
        if pixels == (height, width):
            return grid
    raise ValueError(
        f"pictures are {height}x{width}, which no grid of the model spans: draw them at one of its "
        f"canvas sizes (train/canvas.py)"
    )


def collate(
    arrays: dict[str, Any], config: FlashVLConfig, tokenizer: Tokenizer, finder: MentionFinder
) -> Batch:
    """arrays: as `dataset.stream` yields them."""
    images: Tensor = arrays["images"]
    image = config.image
    grid = grid_of(config, images.shape[1], images.shape[2])
    rows = [
        fvk.image_to_patches(picture, grid, image.mean, image.std, config.vision.patch)
        for picture in images
    ]
    tokens = image.tokens(grid)
    encoded = [
        encode_conversation(tokenizer, conversation(turns), [tokens]) for turns in arrays["turns"]
    ]
    width = max(len(ids) for ids, _ in encoded)
    ids = torch.zeros(len(encoded), width, dtype=torch.int64)
    answers = torch.zeros(len(encoded), width, dtype=torch.bool)
    for row, (tokens_of_row, mask) in enumerate(encoded):
        ids[row, : len(tokens_of_row)] = torch.tensor(tokens_of_row)
        answers[row, : len(mask)] = torch.tensor(mask)
    mentions = [
        mention
        for row, (turns, marks) in enumerate(zip(arrays["turns"], arrays["marks"], strict=True))
        for mention in finder.find(row, encoded[row][0], turns, marks)
    ]
    return Batch(
        rows=torch.cat(rows),
        grid=grid,
        ids=ids,
        answers=answers,
        symbol=arrays["symbol"],
        ordinal=arrays["ordinal"],
        colour=arrays["colour"],
        kinds=[[kind for _, _, kind in turns] for turns in arrays["turns"]],
        mentions=mentions,
    )


def conversation(turns: Any) -> list[dict[str, str]]:
    """Question turns as chat messages."""
    messages = []
    for question, answer, _ in turns:
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": answer})
    return messages
