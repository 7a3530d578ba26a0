"""A Flash-VL of a few layers whose greedy answers are varied and depend on image and question."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch

from flashvl import FlashVL, FlashVLConfig
from tests.model.toy_text import toy_tokenizer


def toy_config() -> FlashVLConfig:
    """The tiny model with fewer layers, a thumbnail, and a vocabulary padded beyond the toy's
    266."""
    tiny = FlashVLConfig.tiny()
    return dataclasses.replace(
        tiny,
        decoder=dataclasses.replace(
            tiny.decoder, layers=2, vocab=280, max_positions=256, tie_embeddings=False
        ),
        vision=dataclasses.replace(tiny.vision, layers=1),
        image=dataclasses.replace(tiny.image, thumbnail=True),
    )


def toy_model(folder: Path) -> FlashVL:
    """fp32. Matrices are 3 times their usual size: at 1 every answer repeats a single token."""
    rows = FlashVL.random(toy_config(), dtype=torch.float32, layout="rows")
    for parameter in rows.parameters():
        if parameter.dim() == 2:
            parameter.mul_(3)
    model = FlashVL.random(toy_config(), dtype=torch.float32)
    model.load_weights(rows.released_state())
    model.tokenizer = toy_tokenizer(folder)
    return model


def picture(seed: int, height: int = 60, width: int = 130) -> np.ndarray:
    """Noise, uint8 [height, width, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
