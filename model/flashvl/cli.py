"""The `flashvl` command: ask about an image, describe a checkpoint, run the demo.

What a user can get wrong ends in one line on stderr and exit status 2, never in a traceback.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from flashvl import checkpoint, demo
from flashvl.chat import encode_prompt
from flashvl.image import load_image
from flashvl.model import FlashVL
from flashvl_kernels import backend, backends

DTYPES = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}
WEIGHTS = ("bf16", "int8", "int4")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    arguments = _parser().parse_args(argv)
    if arguments.dtype is None:
        # A CPU without bf16 units computes bf16 about 3 times slower (measured, AVX2), which a
        # model that fits the cache does not win back in memory traffic.
        arguments.dtype = "fp32" if arguments.checkpoint == "tiny" else "bf16"
    try:
        with _backend(arguments.backend):
            run: Callable[[argparse.Namespace], None] = arguments.run
            run(arguments)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader has seen enough, as in `flashvl demo | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, TypeError, OSError, RuntimeError, ImportError) as error:
        if os.environ.get("FLASHVL_TRACEBACK"):
            raise
        print(f"flashvl: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="flashvl",
        description="Flash-VL on flashvl_kernels: ask a vision-language model about images.",
        epilog="FLASHVL_TRACEBACK=1 shows where an error was raised.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    ask = commands.add_parser("ask", help="answer a question about an image")
    ask.add_argument("image", metavar="IMAGE", help="an image file, or - for standard input")
    ask.add_argument("question", metavar="QUESTION")
    _model_options(ask)
    ask.add_argument("--max-new-tokens", type=int, metavar="N", help="default: 256, or what fits")
    ask.add_argument("--json", action="store_true", help="print answer and timings as JSON")
    ask.set_defaults(run=_ask)
    info = commands.add_parser("info", help="describe a checkpoint and the backends here")
    _model_options(info)
    info.add_argument("--json", action="store_true", help="print it as JSON")
    info.set_defaults(run=_info)
    show = commands.add_parser("demo", help="ask the packaged tiny model, score it, time it")
    _model_options(show)
    show.add_argument("--picture", type=Path, help="also write questions and answers as a PNG")
    show.add_argument(
        "--fresh", type=int, default=0, metavar="N",
        help="also score N held-out questions of each set drawn now (needs the extra train)",
    )  # fmt: skip
    show.set_defaults(run=_demo)
    return parser


def _model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint",
        default="tiny",
        metavar="DIR",
        help="folder in the released layout; default: tiny, the packaged model",
    )
    parser.add_argument("--backend", metavar="B", help="auto, torch, cpu, triton or cuda")
    parser.add_argument("--device", default="cpu", metavar="D", help="cpu (default) or cuda")
    parser.add_argument(
        "--dtype", choices=DTYPES, help="default: fp32 for the packaged model, bf16 for others"
    )
    parser.add_argument("--weights", default="bf16", choices=WEIGHTS, help="default: bf16")


def _backend(name: str | None) -> contextlib.AbstractContextManager[None]:
    if name is None:
        return contextlib.nullcontext()
    return backend(name)


def _load(arguments: argparse.Namespace) -> FlashVL:
    return FlashVL.from_pretrained(
        arguments.checkpoint, arguments.device, DTYPES[arguments.dtype], arguments.weights
    )


def _ask(arguments: argparse.Namespace) -> None:
    image = load_image(sys.stdin.buffer if arguments.image == "-" else arguments.image)
    model = _load(arguments)
    if model.tokenizer is not None:  # a bad question fails before the encoder runs
        encode_prompt(model.tokenizer, arguments.question)
    stream = None if arguments.json else _write
    result = model.generate(
        image, arguments.question, max_new_tokens=arguments.max_new_tokens, stream=stream
    )
    print(json.dumps(result.to_json(), ensure_ascii=False, indent=2) if arguments.json else "")


def _write(text: str) -> None:
    # A terminal that is not UTF-8 shows ? for what it lacks instead of failing.
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, errors="replace").decode(encoding))
    sys.stdout.flush()


def _demo(arguments: argparse.Namespace) -> None:
    model = _load(arguments)
    demo.run(model, _write, arguments.backend, arguments.fresh)
    if arguments.picture:
        from flashvl import picture

        picture.draw(model, arguments.picture)


def _info(arguments: argparse.Namespace) -> None:
    facts = describe(arguments)
    if arguments.json:
        print(json.dumps(facts, indent=2))
        return
    for title, values in facts.items():
        print(title)
        width = max(map(len, values), default=0)
        for name, value in values.items():
            print(f"  {name:<{width}}  {_shown(value)}")


def describe(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Configuration, sizes and backends, without loading the weights."""
    folder = checkpoint.find(arguments.checkpoint)
    config = checkpoint.read_config(folder)
    model = FlashVL(config, "meta", DTYPES[arguments.dtype])
    parts = {name: _count(part) for name, part in model.named_children()}
    cache = model.decoder.new_cache(1, 1).nbytes
    facts: dict[str, dict[str, Any]] = {
        "checkpoint": {"folder": str(folder), **_files(folder)},
        "parameters": {**parts, "total": sum(parts.values())},
        f"bytes in {arguments.dtype}": {
            "weights": sum(p.nbytes for p in model.parameters()),
            "cache per token": cache,
        },
    }
    settings = config.to_json()
    for name in ("vision", "adapter", "decoder", "image"):
        facts[name] = {key: value for key, value in settings[name].items() if value is not None}
    facts["backends"] = {arguments.device: ", ".join(backends.available(arguments.device))}
    return facts


def _count(part: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in part.parameters())


def _files(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.is_file()}


def _shown(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 10_000:
        return f"{value:,}"
    return json.dumps(value) if isinstance(value, (list, dict)) else str(value)


if __name__ == "__main__":
    sys.exit(main())
