"""`flashvl-bench model`: the model's parts beside their peers, memory, and loading.

transformers computes with the same random weights in this process; OpenVINO and llama.cpp with
random weights of the same shapes in processes of their own (remote.py). All sides of a row take
turns. Before anything is timed, our outputs are judged against a float64 run. One part's model, and
one weight format beside it, is built, measured and freed at a time.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

import torch

from flashvl import FlashVLConfig
from flashvl_bench import ceilings, loading, machine, memory, parts, peer, report, schema
from flashvl_bench.ceilings import Ceilings
from flashvl_bench.rows import Row
from flashvl_kernels import backends
from flashvl_kernels.packing import FORMATS

PARTS = ("vision", "prefill", "ttft", "decode", "decode8", "memory", "load")
PEERS = (parts.EAGER, parts.COMPILED, "openvino", "llama.cpp")


@dataclass(frozen=True)
class Settings:
    """What is measured. layers: depth to cut all sides to; None leaves the model whole."""

    config: str = "static_2b"
    weights: tuple[str, ...] = FORMATS
    dtype: str = "bf16"
    backend: str = "auto"
    peers: tuple[str, ...] = PEERS
    prompt: int = 300
    tokens: int = 16
    repeats: int = 5
    layers: int | None = None
    parts: tuple[str, ...] = PARTS


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


def measure(settings: Settings, top: Ceilings) -> Iterator[Row]:
    """The rows of all timed parts, each part freed before the next is built."""
    for part, build, names in (
        (parts.vision, "vision", {"vision"}),
        (parts.decoder, "decoder", {"prefill", "decode", "decode8"}),
        (parts.ttft, "", {"ttft"}),
    ):
        if names & set(settings.parts):
            yield from part(settings, configuration(settings, build), top)
            gc.collect()


def run(settings: Settings, json_file: str | None = None) -> int:
    """Measure, print, and write the result file.

    Exit status 1 if an output was wrong or a process failed, 2 if transformers is missing.
    """
    try:
        if set(settings.parts) - {"load", "memory"}:
            peer.require()
    except peer.PeerMissing as error:
        print(f"flashvl-bench model: {error}")
        return 2
    here = machine.facts()
    print(f"machine   {here.line()}")
    top = ceilings.measure(here.cache_bytes)
    print(f"ceilings  {top.line()}")
    print(f"model     {title(settings)}")
    print(f"method    {_method(settings)}\n", flush=True)
    start = time.perf_counter()
    table = report.Table(report.MODEL)
    rows: list[Row] = []
    for row in measure(settings, top):
        rows.append(row)
        for cells in report.model_cells(row):
            print(table.row(cells), flush=True)
    print(report.batch_line(rows))
    held = list(_memory(settings)) if "memory" in settings.parts else []
    loads = list(_loads(settings)) if "load" in settings.parts else []
    end = ceilings.measure(here.cache_bytes)
    print(f"\nceilings at the end: {end.line()}")
    print(f"measured in {time.perf_counter() - start:.0f} s")
    if json_file:
        document = {
            "schema": "flashvl-bench/model",
            "version": schema.VERSION,
            "machine": asdict(here),
            "settings": asdict(settings),
            "ceilings": asdict(top),
            "ceilings_end": asdict(end),
            "parts": [asdict(row) for row in rows],
            "memory": [asdict(each) for each in held],
            "loading": [asdict(load) for load in loads],
        }
        schema.write(document, json_file)
    states = [each.status for each in (*rows, *held, *loads)]
    return 1 if {"wrong", "fails"} & set(states) else 0


def _memory(settings: Settings) -> Iterator[memory.Memory]:
    whole = settings.config == "static_2b" and settings.layers is None
    threads = torch.get_num_threads()
    for weights in settings.weights:
        config, backend = configuration(settings), settings.backend
        found = memory.measure(config, settings.dtype, weights, backend, threads, settings.prompt)
        print(found.line(whole), flush=True)
        yield found


def _loads(settings: Settings) -> Iterator[loading.Load]:
    for weights in settings.weights:
        found = loading.measure(configuration(settings), settings.dtype, weights)
        print(f"{found.line()} ({weights})", flush=True)
        yield found


def title(settings: Settings) -> str:
    """The model in words."""
    c = configuration(settings)
    depth = "" if settings.layers is None else " (DEPTH CUT on all sides, not the whole model)"
    return (
        f"{settings.config}, {settings.dtype}, random weights: encoder {c.vision.kind} of "
        f"{c.vision.layers} layers on one {c.vision.tile_px}-px tile, decoder of "
        f"{c.decoder.layers} layers, prompt of {settings.prompt}{depth}"
    )


def _method(settings: Settings) -> str:
    only_torch = backends.available("cpu") == ["torch"]
    note = f" (torch everywhere: {backends.extension.EXTENSION.reason})" if only_torch else ""
    return (
        f"ours: backend {settings.backend}{note}; sides take turns; outputs judged against float64 "
        f"first; {settings.repeats} calls of each side, {settings.tokens * settings.repeats} "
        f"decode steps; median and distance of the quartiles; {torch.get_num_threads()} threads"
    )
