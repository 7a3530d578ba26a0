"""Answering: images and messages in, text out, with the time of every part.

One engine serves a single question, a batch and a stream: prompts of unequal length are prefilled
together without padding, and a sequence that has ended takes no further steps. Text leaves through
`StreamDecoder` and a guard that holds back whatever may become a stop string, so what is streamed
is always whole characters and adds up to the final text.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from flashvl.chat import AFTER_IMAGE, IMAGE_FIRST, encode_prompt
from flashvl.decoder import Span
from flashvl.image import image_to_inputs, load_image, plan
from flashvl.sampling import SamplingParams, sample
from flashvl.tokenizer import StreamDecoder, Tokenizer
from flashvl_kernels import TileGrid

if TYPE_CHECKING:
    from flashvl.model import FlashVL

DEFAULT_NEW_TOKENS = 256
Messages = Sequence[Mapping[str, Any]] | str


class ContextError(ValueError):
    """Prompt and answer need more positions than the decoder has."""


@dataclass(frozen=True)
class Timings:
    """Wall time of the parts of an answer; of a batch, each part for the whole batch.

    image_s: decoding and cutting into patches. vision_s: encoder and adapter. prefill_s: the prompt
    and the choice of the first token. ttft_s: from the call to the first token. decode_s: all later
    steps, without the time spent in `stream`. decode_tokens_per_s: tokens of those steps a second
    (0 if there were none). peak_rss_bytes: the most memory the process has ever held.
    """

    image_s: float
    vision_s: float
    prefill_s: float
    ttft_s: float
    decode_s: float
    decode_tokens_per_s: float
    peak_rss_bytes: int


@dataclass(frozen=True)
class Result:
    """An answer. finish_reason: "eos" (the model ended its turn), "stop" (a stop string came) or
    "length" (max_new_tokens). token_ids: what was generated, without the token that ends the turn.
    """

    text: str
    token_ids: list[int]
    timings: Timings
    finish_reason: str
    prompt_tokens: int

    def to_json(self) -> dict[str, Any]:
        """The result as plain JSON values."""
        return asdict(self)


class Request(NamedTuple):
    """One conversation of a batch; `sampling` None takes that of the call."""

    images: Any
    messages: Messages
    sampling: SamplingParams | None = None


def generate(
    model: FlashVL,
    images: Any,
    messages: Messages,
    max_new_tokens: int | None = None,
    stream: Callable[[str], object] | None = None,
    **controls: Any,
) -> Result:
    """The model's answer to `messages` about `images`.

    images: None, one image, or a list of them (see `flashvl.image.load_image`). messages: a
    question or ChatML turns (see `flashvl.chat.encode_prompt`). max_new_tokens: 256, or as many as
    fit, by default. stream: called with each piece of text as it becomes final. controls:
    temperature, top_k, top_p, repetition_penalty, seed, stop, ignore_eos of `SamplingParams`;
    greedy by default.
    Raises ImageError, ChatError, TokenizerError, ContextError, and ValueError for bad controls.
    """
    sampling = SamplingParams(max_new_tokens=max_new_tokens, **controls)
    each = None if stream is None else lambda _, text: stream(text)
    return generate_batch(model, [Request(images, messages, sampling)], stream=each)[0]


@torch.no_grad()
def generate_batch(
    model: FlashVL,
    requests: Sequence[Request | tuple[Any, Messages]],
    max_new_tokens: int | None = None,
    stream: Callable[[int, str], object] | None = None,
    sampling: SamplingParams | None = None,
) -> list[Result]:
    """The answers to several conversations, the same as one by one.

    requests: (images, messages) each, with optional SamplingParams of their own. stream: called
    with the number of the request and a piece of its text.
    """
    default = sampling or SamplingParams(max_new_tokens=max_new_tokens)
    clock = _Clock(model.device)
    tokenizer = _tokenizer_of(model)
    jobs = []
    for index, request in enumerate(requests):
        images, messages, own = Request(*request)
        jobs.append(_prepare(model, tokenizer, images, messages, own or default, index))
    if not jobs:
        return []
    clock.lap("image")
    rows = [_image_rows(model, job.parts) for job in jobs]
    clock.lap("vision")
    embeds = [
        model.embed(torch.tensor(job.ids), image_rows)
        for job, image_rows in zip(jobs, rows, strict=True)
    ]
    capacity = max(len(job.ids) + job.new_tokens for job in jobs)
    states, cache = model.prefill_states(embeds, capacity=capacity)
    tokens = _choose(model, states, jobs)
    clock.lap("prefill")
    active, steps = _accept(jobs, tokens, stream), 0
    while active:
        clock.start()
        ids = torch.tensor([job.answer.ids[-1] for job in active], device=model.device)
        spans = [Span(job.index, cache.lengths[job.index], 1) for job in active]
        states = model.decoder.extend(model.decoder.embed(ids), spans, cache)
        tokens = _choose(model, states, active)
        clock.lap("decode")
        steps += len(active)
        active = _accept(active, tokens, stream)
    timings = clock.timings(steps)
    return [job.result(timings) for job in jobs]


def chat(
    model: FlashVL,
    image: Any,
    messages: Messages,
    do_sample: bool = False,
    max_new_tokens: int | None = None,
    stream: Callable[[str], object] | None = None,
    **controls: Any,
) -> str:
    """The answer as text, called like the released models' `chat`.

    do_sample: draw with the controls that Qwen2-1.5B-Instruct is published with (temperature 0.7,
    top-k 20, top-p 0.8), each of which `controls` may replace; else greedy.
    """
    if do_sample:
        controls = {"temperature": 0.7, "top_k": 20, "top_p": 0.8, **controls}
    return generate(model, image, messages, max_new_tokens, stream, **controls).text


@dataclass
class Conversation:
    """Several turns with one model: keeps images and messages, and asks with all of them.

    Every turn is prefilled anew, so that it is the same as giving `generate` the whole history.
    """

    model: FlashVL
    system: str | None = None
    images: list[Any] = field(default_factory=list)
    messages: list[Mapping[str, Any]] = field(default_factory=list)

    def ask(
        self,
        question: str,
        images: Any = None,
        max_new_tokens: int | None = None,
        stream: Callable[[str], object] | None = None,
        **controls: Any,
    ) -> Result:
        """The answer to `question`, asked about new `images` or the earlier ones. A question that
        fails leaves the conversation as it was."""
        shown = _as_list(images)
        content: list[dict[str, str]] = [{"type": "image"}] * len(shown)
        text = AFTER_IMAGE + question if shown and question.strip() else question
        asked: list[Mapping[str, Any]] = [
            *self.messages,
            {"role": "user", "content": [*content, {"type": "text", "text": text}]},
        ]
        if self.system is not None and not self.messages:
            asked.insert(0, {"role": "system", "content": self.system})
        everything = [*self.images, *shown]
        result = generate(self.model, everything, asked, max_new_tokens, stream, **controls)
        self.images = everything
        self.messages = [*asked, {"role": "assistant", "content": result.text}]
        return result


class _Answer:
    """The tokens and the text of one answer as they come."""

    def __init__(self, tokenizer: Tokenizer, sampling: SamplingParams) -> None:
        self.ids: list[int] = []
        self.text = ""
        self.reason = ""
        self._tokenizer = tokenizer
        self._decoder = StreamDecoder(tokenizer)
        self._sampling = sampling
        self._held = ""

    def push(self, token: int, most: int) -> str:
        """Takes a token and returns the text that is now final; `reason` is set at the end."""
        if token in self._tokenizer.stop_ids and not self._sampling.ignore_eos:
            self.reason = "eos"
            return self._release(self._decoder.finish(), last=True)
        self.ids.append(token)
        # The vocabulary may be padded beyond the tokenizer; those rows stand for nothing.
        new = self._decoder.push(token) if token < len(self._tokenizer) else ""
        if len(self.ids) >= most:
            self.reason = "length"
            new += self._decoder.finish()
        return self._release(new, last=bool(self.reason))

    def _release(self, new: str, last: bool) -> str:
        text = self._held + new
        found = [at for stop in self._sampling.stop if (at := text.find(stop)) >= 0]
        if found:
            self.reason = "stop"
            ready = text[: min(found)]
        else:
            keep = 0 if last else max(map(_overlap(text), self._sampling.stop), default=0)
            ready = text[: len(text) - keep]
        self._held = text[len(ready) :]
        self.text += ready
        return ready


def _overlap(text: str) -> Callable[[str], int]:
    """How long an end of `text` is the beginning of a stop string that may still be completed."""

    def of(stop: str) -> int:
        longest = min(len(stop) - 1, len(text))
        return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)

    return of


@dataclass
class _Job:
    """One request on its way: prompt ids, the encoder's input, and the answer so far."""

    index: int
    ids: list[int]
    parts: list[tuple[Tensor, TileGrid]]
    new_tokens: int
    sampling: SamplingParams
    generator: torch.Generator | None
    answer: _Answer

    def result(self, timings: Timings) -> Result:
        answer = self.answer
        return Result(answer.text, answer.ids, timings, answer.reason, len(self.ids))


def _prepare(
    model: FlashVL,
    tokenizer: Tokenizer,
    images: Any,
    messages: Messages,
    sampling: SamplingParams,
    index: int,
) -> _Job:
    """Everything that can go wrong with a request goes wrong here, before the model runs."""
    policy = model.config.image
    loaded = [load_image(image) for image in _as_list(images)]
    counts = [plan(image.shape[0], image.shape[1], policy).tokens for image in loaded]
    ids = encode_prompt(tokenizer, messages, counts)
    new_tokens = _new_tokens(model, ids, sampling.max_new_tokens)
    parts = [
        part
        for image in loaded
        for part in image_to_inputs(image.to(model.device), policy, model.dtype)
    ]
    answer = _Answer(tokenizer, sampling)
    return _Job(index, ids, parts, new_tokens, sampling, sampling.generator(), answer)


def _new_tokens(model: FlashVL, ids: list[int], asked: int | None) -> int:
    most = model.config.decoder.max_positions
    room = most - len(ids)
    wanted = min(DEFAULT_NEW_TOKENS, max(room, 1)) if asked is None else asked
    if wanted <= room:
        return wanted
    images = sum(token <= IMAGE_FIRST for token in ids)
    advice = (
        f"set max_new_tokens to {room} or less" if room > 0 else "shorten it or use fewer images"
    )
    raise ContextError(
        f"messages take {len(ids)} positions ({images} image, {len(ids) - images} text) and "
        f"max_new_tokens is {wanted}, but decoder.max_positions is {most}; {advice}"
    )


def _image_rows(model: FlashVL, parts: list[tuple[Tensor, TileGrid]]) -> Tensor | None:
    rows = [model.embed_image(patches, grid) for patches, grid in parts]
    return torch.cat(rows) if rows else None


def _choose(model: FlashVL, states: Tensor, jobs: list[_Job]) -> list[int]:
    """The next token of each job; the logits are made only for those that need them."""
    tokens = [0] * len(jobs)
    greedy = [n for n, job in enumerate(jobs) if job.sampling.plain_greedy]
    drawn = [n for n, job in enumerate(jobs) if not job.sampling.plain_greedy]
    if greedy:
        best = model.decoder.greedy(states if not drawn else states[greedy])
        for n, token in zip(greedy, best.tolist(), strict=True):
            tokens[n] = token
    if drawn:
        for n, logits in zip(drawn, model.decoder.logits(states[drawn]), strict=True):
            job = jobs[n]
            seen = (*job.ids, *job.answer.ids)
            tokens[n] = sample(logits, job.sampling, job.generator, seen)
    return tokens


def _accept(
    jobs: list[_Job], tokens: list[int], stream: Callable[[int, str], object] | None
) -> list[_Job]:
    """Gives every job its token, streams what became final, returns the jobs that go on."""
    for job, token in zip(jobs, tokens, strict=True):
        text = job.answer.push(token, job.new_tokens)
        if text and stream is not None:
            stream(job.index, text)
    return [job for job in jobs if not job.answer.reason]


class _Clock:
    """Laps of the parts of an answer. A GPU is waited for, so that a lap is the part's own time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._laps: dict[str, float] = {}
        self._begin = self._last = time.perf_counter()
        self._first_token = 0.0

    def start(self) -> None:
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        self._laps[name] = self._laps.get(name, 0.0) + now - self._last
        self._last = now
        if name == "prefill":
            self._first_token = now - self._begin

    def timings(self, steps: int) -> Timings:
        decode = self._laps.get("decode", 0.0)
        return Timings(
            image_s=self._laps["image"],
            vision_s=self._laps["vision"],
            prefill_s=self._laps["prefill"],
            ttft_s=self._first_token,
            decode_s=decode,
            decode_tokens_per_s=steps / decode if steps else 0.0,
            peak_rss_bytes=_peak_rss(),
        )


def _peak_rss() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts KiB


def _as_list(images: Any) -> list[Any]:
    if images is None:
        return []
    return list(images) if isinstance(images, (list, tuple)) else [images]


def _tokenizer_of(model: FlashVL) -> Tokenizer:
    if model.tokenizer is None:
        raise ValueError(
            "model has no tokenizer (FlashVL.random makes none): set model.tokenizer = "
            "Tokenizer.from_pretrained(folder), from flashvl.tokenizer"
        )
    return model.tokenizer
