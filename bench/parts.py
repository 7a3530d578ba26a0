"""The parts of the model that are timed, each with its work, its oracle and its peers."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flashvl import FlashVL, FlashVLConfig
from flashvl.image import image_to_inputs
from flashvl_bench import peer, remote, work
from flashvl_bench.ceilings import DTYPES, Ceilings
from flashvl_bench.remote import RemoteError
from flashvl_bench.rows import OURS, Row, contender, judged, timed
from flashvl_bench.timing import Contender
from flashvl_kernels import backends

if TYPE_CHECKING:
    from flashvl_bench.model import Settings

EAGER, COMPILED = "transformers", "torch.compile"
SEED = 0
TEXT = 32  # tokens of the question in a TTFT
IMAGE_FIRST = -200
BATCH = 8

Peers = dict[str, Contender | RemoteError]


def built(config: FlashVLConfig, settings: Settings, weights: str, rows: bool) -> FlashVL:
    """Our model. rows: with its matrices as plain rows, which transformers can share."""
    with backends.backend(settings.backend):  # which layout is the best one depends on it
        return FlashVL.random(
            config, SEED, dtype=DTYPES[settings.dtype], weights=weights,
            layout="rows" if rows else "auto",
        )  # fmt: skip


def _ours(settings: Settings, run: Callable[[], Any]) -> Contender:
    return Contender(OURS, run, partial(backends.backend, settings.backend))


def _remote(
    stack: ExitStack, peers: Peers, names: Sequence[str], start: Callable[[str], Any], do: str
) -> dict[str, Any]:
    """Start the peers of these names for as long as `stack` lives; a missing one is noted."""
    found = {}
    for name in names:
        try:
            found[name] = stack.enter_context(start(name))
            peers[name] = contender(name, found[name], do)
        except RemoteError as error:
            peers[name] = error
    return found


def _open_vision(config: FlashVLConfig, weights: str, name: str) -> Any:
    return remote.open_vision(name, config, weights)


@torch.no_grad()
def vision(settings: Settings, config: FlashVLConfig, top: Ceilings) -> Iterator[Row]:
    """One tile through the encoder."""
    rows = built(config, settings, "bf16", rows=True)
    theirs = peer.vision_peer(rows)
    dtype, side = DTYPES[settings.dtype], config.vision.tile_px
    generator = torch.Generator().manual_seed(SEED)
    pixels = torch.randn(1, 3, side, side, generator=generator).to(dtype)

    def eager() -> Tensor:
        return theirs(pixel_values=pixels).last_hidden_state

    with peer.widened(theirs):
        truth = theirs(pixel_values=pixels.double()).last_hidden_state
    expected = eager()
    for weights in settings.weights:
        ours = built(config, settings, weights, rows=False)
        with ExitStack() as stack:
            peers: Peers = {}
            if weights == "bf16" and EAGER in settings.peers:
                peers[EAGER] = Contender(EAGER, eager)
            if weights == "bf16" and COMPILED in settings.peers:
                peers[COMPILED] = peer.compiled(COMPILED, eager)
            names = [n for n in ("openvino",) if n in settings.peers and weights == "bf16"]
            _remote(stack, peers, names, partial(_open_vision, config, weights), "vision")
            with backends.backend(settings.backend):
                got = ours.vision(pixels)
            row = judged(Row("vision", weights, settings.backend), got, expected, truth)
            cost = work.vision(config.vision, work.held_bytes(ours.vision), dtype.itemsize)
            run = _ours(settings, partial(ours.vision, pixels))
            yield timed(row, run, peers, settings.repeats, (cost, top, settings.dtype))
        del ours
        gc.collect()


class _Decoder:
    """What every format's rows are compared with: transformers, and its float64 logits."""

    def __init__(self, settings: Settings, config: FlashVLConfig, top: Ceilings) -> None:
        self.settings, self.config, self.top = settings, config, top
        self.rows = built(config, settings, "bf16", rows=True)
        self.theirs: Any = peer.decoder_peer(self.rows)
        generator = torch.Generator().manual_seed(SEED)
        size = (settings.prompt + 1,)
        ids = torch.randint(0, config.decoder.vocab, size, generator=generator)
        self.prompt, self.token = self.rows.decoder.embed(ids[:-1]), int(ids[-1])
        with peer.widened(self.theirs):
            everything = self.rows.decoder.embed(ids)[None].double()
            run = self.theirs(inputs_embeds=everything, use_cache=False, logits_to_keep=2)
        self.truth = run.logits[0]
        first = self.prefill()
        self.logits, self.cache = first.logits[0, 0], first.past_key_values
        self.batch_cache = copy.deepcopy(self.cache)
        self.batch_cache.batch_repeat_interleave(BATCH)
        self.second = self.step(self.cache, 1)[0]

    def prefill(self) -> Any:
        return self.theirs(inputs_embeds=self.prompt[None], use_cache=True, logits_to_keep=1)

    def step(self, cache: Any, batch: int) -> Tensor:
        ids = torch.full((batch, 1), self.token)
        return self.theirs(input_ids=ids, past_key_values=cache, use_cache=True).logits[:, 0]

    @property
    def steps(self) -> int:
        return self.settings.tokens * self.settings.repeats

    def open(self, weights: str, batch: int, name: str) -> Any:
        prompt, steps = self.settings.prompt, self.steps + 2
        return remote.open_decoder(name, self.config, weights, prompt, steps, batch)

    def eager(self, weights: str, run: Callable[[], Any]) -> Peers:
        wanted = weights == "bf16" and EAGER in self.settings.peers
        return {EAGER: Contender(EAGER, run)} if wanted else {}

    def format(self, weights: str) -> Iterator[Row]:
        """Prefill, decode and decode of a batch with our model in one format."""
        settings, parts = self.settings, self.settings.parts
        ours = built(self.config, settings, weights, rows=False)
        c, size = self.config.decoder, DTYPES[settings.dtype].itemsize
        held = work.decoder_weights(ours.decoder, ours.decoder.table, c.tie_embeddings)
        row = partial(Row, weights=weights, backend=settings.backend)
        names = [name for name in ("openvino", "llama.cpp") if name in settings.peers]
        prefill = partial(ours.prefill, capacity=settings.prompt + self.steps + 2)
        with ExitStack() as stack:
            peers = self.eager(weights, self.prefill)
            start = partial(self.open, weights, BATCH if "decode8" in parts else 1)
            found = _remote(stack, peers, names, start, "prompt")
            with backends.backend(settings.backend):
                logits, cache = prefill(self.prompt)
            if "prefill" in parts:
                judgement = judged(row("prefill"), logits, self.logits, self.truth[0])
                cost = work.prefill(c, settings.prompt, held, size)
                run = _ours(settings, partial(prefill, self.prompt))
                work_of = (cost, self.top, settings.dtype)
                yield timed(judgement, run, peers, settings.repeats, work_of)
            for part, batch in (("decode", 1), ("decode8", BATCH)):
                if part not in parts:
                    continue
                if batch > 1:
                    with backends.backend(settings.backend):
                        cache = prefill([self.prompt] * batch)[1]
                step = partial(ours.decode_step, [self.token] * batch, cache)
                with backends.backend(settings.backend):
                    got = step()[0]
                judgement = judged(row(part), got, self.second, self.truth[1])
                theirs = self.cache if batch == 1 else self.batch_cache
                sides = self.eager(weights, partial(self.step, theirs, batch))
                sides |= self._after_prompt(peers, found, batch)
                cost = work.decode(c, batch, settings.prompt + self.steps // 2, held, size)
                work_of = (cost, self.top, settings.dtype)
                run = _ours(settings, step)
                yield timed(judgement, run, sides, self.steps, work_of, tokens=batch)

    def _after_prompt(self, peers: Peers, found: dict[str, Any], batch: int) -> Peers:
        """The remote peers, each having just read `batch` prompts."""
        sides: Peers = {n: p for n, p in peers.items() if isinstance(p, RemoteError)}
        for name, process in found.items():
            try:
                process.ask("prompt", batch=batch)
                process.ask("step")
                sides[name] = contender(name, process, "step")
            except RemoteError as error:
                sides[name] = error
        return sides


@torch.no_grad()
def decoder(settings: Settings, config: FlashVLConfig, top: Ceilings) -> Iterator[Row]:
    """A prompt, and steps of one token after it, for one sequence and for eight."""
    known = _Decoder(settings, config, top)
    for weights in settings.weights:
        yield from known.format(weights)
        gc.collect()


@torch.no_grad()
def ttft(settings: Settings, config: FlashVLConfig, top: Ceilings) -> Iterator[Row]:
    """From a uint8 image of one tile and a question of 32 tokens to the first token's logits."""
    rows = built(config, settings, "bf16", rows=True)
    eager = peer.pipeline(rows)
    side, dtype = config.vision.tile_px, DTYPES[settings.dtype]
    generator = torch.Generator().manual_seed(SEED)
    image = torch.randint(0, 256, (side, side, 3), generator=generator).to(torch.uint8)
    count = config.image.tokens(config.image.grid(1, 1))
    text = torch.randint(0, config.decoder.vocab, (TEXT,), generator=generator)
    ids = torch.cat((torch.full((count,), IMAGE_FIRST), text))

    def answer(model: FlashVL) -> Tensor:
        parts = image_to_inputs(image, config.image, dtype)
        tokens = torch.cat([model.embed_image(patches, grid) for patches, grid in parts])
        return model.prefill(model.embed(ids, tokens), capacity=len(ids) + 1)[0]

    truth, expected = eager(image, text, exact=True), eager(image, text)
    for weights in settings.weights:
        ours = built(config, settings, weights, rows=False)
        with backends.backend(settings.backend):
            row = judged(Row("ttft", weights, settings.backend), answer(ours), expected, truth)
        size, table = dtype.itemsize, ours.decoder.table
        held = work.decoder_weights(ours.decoder, table, config.decoder.tie_embeddings)
        cost = work.together(
            work.vision(config.vision, work.held_bytes(ours.vision), size),
            work.adapter(config.adapter, count, work.held_bytes(ours.adapter), size),
            work.prefill(config.decoder, len(ids), held, size),
        )
        wanted = weights == "bf16" and EAGER in settings.peers
        peers: Peers = {EAGER: Contender(EAGER, partial(eager, image, text))} if wanted else {}
        run = _ours(settings, partial(answer, ours))
        yield timed(row, run, peers, settings.repeats, (cost, top, settings.dtype))
        del ours
        gc.collect()
