"""Choosing the next token: greedy, or sampled with the usual four controls.

The meaning and the order of the controls are those of Hugging Face transformers' generate(), which
most users come from: repetition penalty over prompt and answer, then temperature, top-k, top-p.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class SamplingParams:
    """How to choose tokens and when to stop.

    temperature 0 takes the most likely token; top_k 0 and top_p 1 keep all; repetition_penalty 1
    does nothing, above 1 makes seen tokens less likely; seed None is a different draw each time;
    generation ends before any of the `stop` strings, which are not part of the answer;
    max_new_tokens None is 256, or what fits; ignore_eos goes on after the model ended its turn, for
    timing.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: Sequence[str] = field(default=())
    max_new_tokens: int | None = None
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        _number("temperature", self.temperature, 0.0, math.inf, "0 (greedy) or 1e-5 and more")
        if 0 < self.temperature < 1e-5:  # fp32 logits over less would be infinite
            raise ValueError(
                f"temperature must be 0 (greedy) or at least 1e-5, got {self.temperature}"
            )
        _number("top_p", self.top_p, 0.0, 1.0, "above 0 and at most 1", open_low=True)
        _number(
            "repetition_penalty", self.repetition_penalty, 0.0, math.inf, "above 0", open_low=True
        )
        _integer("top_k", self.top_k, 0, "0 (off) or more")
        if self.max_new_tokens is not None:
            _integer("max_new_tokens", self.max_new_tokens, 1, "1 or more, or None")
        if self.seed is not None:
            _integer("seed", self.seed, 0, "0 or more, or None")
        if isinstance(self.stop, str):
            raise TypeError(
                f"stop must be a list of strings, got {self.stop!r}; write [{self.stop!r}]"
            )
        for text in self.stop:
            if not isinstance(text, str) or not text:
                raise ValueError(f"stop must hold non-empty strings, got {text!r}; leave it out")
        object.__setattr__(self, "stop", tuple(self.stop))

    @property
    def plain_greedy(self) -> bool:
        """True if the largest logit alone decides, so that the logits need not be written out."""
        return self.temperature == 0 and self.repetition_penalty == 1

    def generator(self) -> torch.Generator | None:
        """The random stream of one answer; None where nothing is drawn."""
        if self.temperature == 0:
            return None
        generator = torch.Generator()
        if self.seed is None:
            generator.seed()
        else:
            generator.manual_seed(self.seed)
        return generator


def filter_logits(logits: Tensor, params: SamplingParams, history: Iterable[int] = ()) -> Tensor:
    """Logits [vocab] in fp32 after penalty, temperature, top-k and top-p; what is ruled out is
    -inf.

    history: ids of prompt and answer so far; negative ids (image sentinels) are not tokens and are
    skipped.
    """
    if logits.dim() != 1 or logits.numel() == 0:
        raise ValueError(f"logits must be [vocab], got shape {tuple(logits.shape)}; pass one row")
    scores = logits.detach().to("cpu", torch.float32)
    if bool(scores.isnan().any()):
        raise ValueError("logits hold NaN: the weights or the input of the model are broken")
    if params.repetition_penalty != 1:
        scores = _penalise(scores, params.repetition_penalty, history)
    if params.temperature == 0:
        return scores
    scores = scores / params.temperature
    if 0 < params.top_k < scores.numel():
        scores = scores.masked_fill(scores < scores.topk(params.top_k).values[-1], -math.inf)
    if params.top_p < 1:
        ascending, order = scores.sort()
        tail = ascending.softmax(0).cumsum(0) <= 1 - params.top_p
        tail[-1] = False
        scores = scores.masked_fill(torch.zeros_like(tail).scatter(0, order, tail), -math.inf)
    return scores


def sample(
    logits: Tensor,
    params: SamplingParams,
    generator: torch.Generator | None = None,
    history: Iterable[int] = (),
) -> int:
    """The next token id from logits [vocab]. Greedy ties go to the lowest id."""
    scores = filter_logits(logits, params, history)
    if params.temperature == 0:
        return int((scores == scores.max()).nonzero()[0])
    if bool(scores.max() == math.inf):
        scores = torch.where(scores == math.inf, 0.0, -math.inf)
    probabilities = scores.softmax(0)
    return int(torch.multinomial(probabilities, 1, generator=generator))


def _penalise(scores: Tensor, penalty: float, history: Iterable[int]) -> Tensor:
    seen = sorted({token for token in history if token >= 0})
    if seen and seen[-1] >= scores.numel():
        raise ValueError(
            f"history holds id {seen[-1]}, but logits have only {scores.numel()} entries"
        )
    ids = torch.tensor(seen, dtype=torch.int64)
    old = scores[ids]
    return scores.index_put((ids,), torch.where(old < 0, old * penalty, old / penalty))


def _number(
    name: str, value: object, low: float, high: float, needs: str, open_low: bool = False
) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    inside = low < value <= high if open_low else low <= value <= high
    if not inside or not math.isfinite(value):
        raise ValueError(f"{name} must be {needs}, got {value}")


def _integer(name: str, value: object, low: int, needs: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
    if value < low:
        raise ValueError(f"{name} must be {needs}, got {value}")
