"""`flashvl-bench model`: vision, prefill and decode beside transformers eager, and loading.

Both sides compute with the same random weights and take turns in one process. Before anything is
timed, our outputs are judged against a float64 run of the peer by the rule of the ops: the error
may be at most twice the peer's own. One part's model is built, measured and freed at a time.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from flashvl import FlashVL, FlashVLConfig
from flashvl_bench import loading, machine, peer, report, schema
from flashvl_bench.ceilings import DTYPES
from flashvl_bench.timing import Budget, Contender, Rotation, Times, interleave
from flashvl_kernels import backends, numerics

PARTS = ("vision", "prefill", "decode", "load")
PEER = "transformers"
BAR = 1.1  # our time over the peer's
SEED = 0


@dataclass(frozen=True)
class Settings:
    """What is measured. layers: depth to cut both sides to; None leaves the model whole."""

    config: str = "static_2b"
    weights: str = "bf16"
    dtype: str = "bf16"
    prompt: int = 300
    tokens: int = 16
    repeats: int = 3
    layers: int | None = None
    parts: tuple[str, ...] = PARTS


@dataclass(frozen=True)
class Row:
    """A part on one of our backends beside the peer; times only where the output is right.

    status: ok, "wrong", or "falls back" (auto would run the torch backend everywhere).
    ratio: our median over the peer's. error, peer_error: root mean square against float64,
    relative to the output's.
    """

    part: str
    backend: str
    status: str = "ok"
    reason: str = ""
    seconds: tuple[float, ...] = ()
    peer_seconds: tuple[float, ...] = ()
    median: float | None = None
    iqr: float | None = None
    peer_median: float | None = None
    peer_iqr: float | None = None
    ratio: float | None = None
    tokens_per_second: float | None = None
    error: float | None = None
    peer_error: float | None = None


def configuration(settings: Settings, part: str = "") -> FlashVLConfig:
    """The configuration to build: depth cut to `settings.layers`, and for `part` "vision" or
    "decoder" the other of the two made minimal, so that it costs no memory."""
    whole: FlashVLConfig = getattr(FlashVLConfig, settings.config)()
    depth = settings.layers or max(whole.vision.layers, whole.decoder.layers)
    vision = replace(whole.vision, layers=min(depth, whole.vision.layers))
    decoder = replace(whole.decoder, layers=min(depth, whole.decoder.layers))
    if part == "vision":
        decoder = replace(decoder, layers=1, vocab=256, mlp=256)
    if part == "decoder":
        vision = replace(vision, layers=1, mlp=256)
    return replace(whole, vision=vision, decoder=decoder)


@dataclass(frozen=True)
class _Outcome:
    """What the agreement check found: our rows so far, and the contenders that may be timed."""

    rows: dict[str, Row]
    contenders: list[Contender]


def our_backends() -> dict[str, str]:
    """Our backends to time; a text says why one of them would be the same as torch."""
    found = {"torch": "", "auto": ""}
    if backends.available("cpu") == ["torch"]:
        found["auto"] = backends.extension.EXTENSION.reason
    return found


def compare(
    part: str, truth: Tensor, theirs: Tensor, peer_run: Any, ours: dict[str, tuple[Tensor, Any]]
) -> _Outcome:
    """Judge each of our outputs; `ours` maps a backend to its output and the function to time."""
    size = float(truth.square().mean().sqrt())
    peer_error = float((theirs.double() - truth).square().mean().sqrt()) / size
    rows, contenders = {}, [Contender(PEER, peer_run)]
    for name, (output, run) in ours.items():
        verdict = numerics.judge(output, theirs, truth)
        row = Row(part, name, error=verdict.rms / size, peer_error=peer_error)
        if verdict.right:
            contenders.append(Contender(name, run, partial(backends.backend, name)))
        else:
            row = replace(row, status="wrong", reason=verdict.reason)
        rows[name] = row
    for name, reason in our_backends().items():
        if reason:
            rows[name] = Row(part, name, "falls back", f"torch everywhere: {reason}")
    return _Outcome(rows, contenders)


def measure_part(
    outcome: _Outcome, args: tuple[Any, ...], calls: int, per_token: bool
) -> list[Row]:
    """Time the contenders of `outcome` in turns and complete the rows."""
    if len(outcome.contenders) == 1:
        return list(outcome.rows.values())
    budget = Budget(math.inf, calls, calls)
    rotation = Rotation(args, 0, warm=True)
    times = interleave(outcome.contenders, rotation, budget)
    theirs = times.pop(PEER)
    return [
        _completed(row, times[name], theirs, per_token) if name in times else row
        for name, row in outcome.rows.items()
    ]


def _completed(row: Row, own: Times, theirs: Times, per_token: bool) -> Row:
    return replace(
        row,
        seconds=own.seconds,
        peer_seconds=theirs.seconds,
        median=own.median,
        iqr=own.iqr,
        peer_median=theirs.median,
        peer_iqr=theirs.iqr,
        ratio=own.median / theirs.median,
        tokens_per_second=1 / own.median if per_token else None,
    )


def _each_backend(run: Callable[[], Any]) -> Iterator[tuple[str, Any]]:
    for name, same_as_torch in our_backends().items():
        if not same_as_torch:
            with backends.backend(name):
                yield name, run()


@torch.no_grad()
def vision(settings: Settings) -> list[Row]:
    """One tile through the encoder."""
    config = configuration(settings, "vision")
    model = FlashVL.random(config, SEED, dtype=DTYPES[settings.dtype])
    theirs = peer.vision_peer(model)
    side = config.vision.tile_px
    generator = torch.Generator().manual_seed(SEED)
    pixels = torch.randn(1, 3, side, side, generator=generator).to(DTYPES[settings.dtype])

    def peer_run(x: Tensor) -> Tensor:
        return theirs(pixel_values=x).last_hidden_state

    with peer.widened(theirs):
        truth = peer_run(pixels.double())
    ours = {name: (out, model.vision) for name, out in _each_backend(lambda: model.vision(pixels))}
    outcome = compare("vision", truth, peer_run(pixels), peer_run, ours)
    return measure_part(outcome, (pixels,), settings.repeats, False)


@torch.no_grad()
def decoder(settings: Settings) -> list[Row]:
    """A prompt, and steps of one token after it."""
    config = configuration(settings, "decoder")
    model = FlashVL.random(config, SEED, dtype=DTYPES[settings.dtype])
    theirs = peer.decoder_peer(model)
    generator = torch.Generator().manual_seed(SEED)
    ids = torch.randint(0, config.decoder.vocab, (settings.prompt + 1,), generator=generator)
    prompt, token = model.decoder.embed(ids[:-1]), int(ids[-1])
    steps = settings.tokens * settings.repeats
    ours_run = partial(model.prefill, capacity=settings.prompt + steps + 2)

    def peer_run(embeds: Tensor) -> Any:
        return theirs(inputs_embeds=embeds[None], use_cache=True, logits_to_keep=1)

    with peer.widened(theirs):
        everything = model.decoder.embed(ids)[None].double()
        truth = theirs(inputs_embeds=everything, use_cache=False, logits_to_keep=2).logits[0]
    first = peer_run(prompt)
    prefilled = dict(_each_backend(lambda: ours_run(prompt)))
    rows = []
    if "prefill" in settings.parts:
        ours = {name: (logits, ours_run) for name, (logits, _) in prefilled.items()}
        outcome = compare("prefill", truth[0], first.logits[0, 0], peer_run, ours)
        rows += measure_part(outcome, (prompt,), settings.repeats, False)
    if "decode" in settings.parts:
        caches = {name: cache for name, (_, cache) in prefilled.items()}
        rows += _decode(settings, model, theirs, (first.past_key_values, caches), token, truth[1])
    return rows


def _decode(
    settings: Settings, model: FlashVL, theirs: Any, caches: Any, token: int, truth: Tensor
) -> list[Row]:
    peer_cache, our_caches = caches

    def peer_step(token: int) -> Tensor:
        ids = torch.tensor([[token]])
        return theirs(input_ids=ids, past_key_values=peer_cache, use_cache=True).logits[0, 0]

    ours = {}
    for name, cache in our_caches.items():
        with backends.backend(name):
            step = partial(model.decode_step, cache=cache)
            ours[name] = (step(token), step)
    outcome = compare("decode", truth, peer_step(token), peer_step, ours)
    return measure_part(outcome, (token,), settings.tokens * settings.repeats, True)


def measure(settings: Settings) -> Iterator[Row]:
    """The rows of vision, prefill and decode, each part freed before the next is built."""
    for part, names in ((vision, {"vision"}), (decoder, {"prefill", "decode"})):
        if names & set(settings.parts):
            yield from part(settings)
            gc.collect()


def run(settings: Settings, json_file: str | None = None) -> int:
    """Measure, print, and write the result file.

    Exit status 1 if an output was wrong or loading failed, 2 if transformers is missing.
    """
    try:
        if set(settings.parts) - {"load"}:
            peer.require()
    except peer.PeerMissing as error:
        print(f"flashvl-bench model: {error}")
        return 2
    here = machine.facts()
    print(f"machine   {here.line()}")
    print(f"model     {_title(settings)}")
    print(f"method    {_method(settings)}\n", flush=True)
    start = time.perf_counter()
    table = report.Table(report.MODEL)
    rows: list[Row] = []
    for row in measure(settings):
        rows.append(row)
        print(table.row(report.model_cells(row, BAR)), flush=True)
    loads: list[loading.Load] = []
    if "load" in settings.parts:
        loads.append(loading.measure(configuration(settings), settings.dtype, settings.weights))
        print(f"\n{loads[0].line()}")
    print(f"\nmeasured in {time.perf_counter() - start:.0f} s")
    if json_file:
        document = {
            "schema": "flashvl-bench/model",
            "version": schema.VERSION,
            "machine": asdict(here),
            "settings": asdict(settings),
            "parts": [asdict(row) for row in rows],
            "loading": [asdict(load) for load in loads],
        }
        schema.write(document, json_file)
    states = [row.status for row in rows] + [load.status for load in loads]
    return 1 if {"wrong", "fails"} & set(states) else 0


def _title(settings: Settings) -> str:
    c = configuration(settings)
    depth = "" if settings.layers is None else " (DEPTH CUT on both sides, not the whole model)"
    return (
        f"{settings.config}, {settings.dtype}, random weights: encoder {c.vision.kind} of "
        f"{c.vision.layers} layers on one {c.vision.tile_px}-px tile, decoder of "
        f"{c.decoder.layers} layers, prompt of {settings.prompt}{depth}"
    )


def _method(settings: Settings) -> str:
    return (
        f"{PEER} eager (sdpa) on the same weights in the same process, in turns; outputs judged "
        f"against float64 first; {settings.repeats} calls of each side, "
        f"{settings.tokens * settings.repeats} decode steps; {torch.get_num_threads()} threads"
    )
