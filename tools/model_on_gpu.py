"""The model on a GPU beside transformers: milliseconds, for docs/ladders/h100.md.

    python tools/model_on_gpu.py [configuration]    # static_2b; run it from an installed checkout

Random weights in bf16, a prompt of 300 rows, tokens chosen greedily. The median of 20 calls between
two CUDA events, on warm caches; "graph" is a replayed CUDA graph. A choice that `flashvl-kernels
tune` has written is in force.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from flashvl import FlashVL, FlashVLConfig
from flashvl_bench import peer
from flashvl_bench.gpu.target import missing
from flashvl_kernels import backend

CALLS = 20
PROMPT = 300
BACKENDS = ("auto", "cuda", "triton", "torch")
Run = Callable[[], Any]


def random_model(config: FlashVLConfig) -> FlashVL:
    """Drawn on the GPU, where two billion numbers take no time."""
    model = FlashVL(config, "cuda", torch.bfloat16).eval()
    generator = torch.Generator("cuda").manual_seed(0)
    for name, value in model.named_parameters():
        if value.dim() > 1:
            value.normal_(0, 0.02, generator=generator)
        else:
            value.fill_(float("norm" in name and name.endswith("weight")))
    return model


def milliseconds(run: Run) -> float:
    """The median of CALLS calls, after three."""
    for _ in range(3):
        run()
    events = [
        (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
        for _ in range(CALLS)
    ]
    torch.cuda.synchronize()
    for start, stop in events:
        start.record()
        run()
        stop.record()
    torch.cuda.synchronize()
    return median(start.elapsed_time(stop) for start, stop in events)


def replayed(run: Run) -> Run:
    """`run` as a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def show(name: str, run: Run, graph: bool = False) -> None:
    try:
        print(f"{name:46} {milliseconds(replayed(run) if graph else run):9.3f} ms", flush=True)
    except Exception as error:  # whatever a backend raises: the others go on
        print(f"{name:46} {type(error).__name__}: {str(error)[:100]}", flush=True)


def vision(model: FlashVL) -> None:
    side = model.config.vision.tile_px
    theirs: Any = peer.vision_peer(model).to("cuda")

    def hugging_face(pixels: Tensor) -> Tensor:
        return theirs(pixel_values=pixels).last_hidden_state

    for tiles in (1, 8):
        pixels = torch.randn(tiles, 3, side, side, device="cuda", dtype=torch.bfloat16)
        for name in BACKENDS:
            with backend(name):
                show(f"encoder, {tiles} tiles, {name}", partial(model.vision, pixels))
                show(f"encoder, {tiles} tiles, {name}, graph", partial(model.vision, pixels), True)
        show(f"encoder, {tiles} tiles, transformers", partial(hugging_face, pixels))
        show(f"encoder, {tiles} tiles, transformers, graph", partial(hugging_face, pixels), True)


def decoder(model: FlashVL) -> None:
    rows = torch.randn(PROMPT, model.config.decoder.dim, device="cuda", dtype=torch.bfloat16) * 0.02
    for name in BACKENDS:
        with backend(name):
            show(f"prompt, {name}", partial(model.prefill, rows, capacity=PROMPT + 100))
            cache = model.prefill(rows, capacity=PROMPT + 100)[1]

            def step(cache: Any = cache) -> None:
                cache.truncate([PROMPT])
                model.decode_greedy(7, cache)

            step()
            show(f"step, {name}", step)
            print(f"  {model.explain_decode(cache)}")
    theirs: Any = peer.decoder_peer(model).to("cuda")

    def prompt() -> Any:
        return theirs(inputs_embeds=rows[None], use_cache=True, logits_to_keep=1)

    past, ids = prompt().past_key_values, torch.full((1, 1), 7, device="cuda")

    def their_step() -> None:
        past.crop(PROMPT)
        theirs(input_ids=ids, past_key_values=past, use_cache=True)

    show("prompt, transformers", prompt)
    show("step, transformers", their_step)


def main() -> int:
    """Exit status 1 without a GPU."""
    reason = missing()
    if reason is not None:
        print(f"model_on_gpu: {reason}", file=sys.stderr)
        return 1
    name = sys.argv[1] if len(sys.argv) > 1 else "static_2b"
    model = random_model(getattr(FlashVLConfig, name)())
    with torch.no_grad():
        vision(model)
        decoder(model)
    return 0


if __name__ == "__main__":
    sys.exit(main())
