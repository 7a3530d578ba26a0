"""The `flashvl-bench` command."""

from __future__ import annotations

import argparse
import os
import sys

from flashvl_bench import steady
from flashvl_bench.gate import cli as gate
from flashvl_bench.page import cli as page
from flashvl_bench.profile import cli as profile


def _words(text: str) -> tuple[str, ...]:
    return tuple(word for word in text.replace(",", " ").split() if word)


def _threads(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--threads", type=int, help="threads of PyTorch and of the kernels (default: PyTorch's)"
    )
    parser.add_argument("--json", metavar="FILE", help="write the result file here")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="flashvl-bench", description="Measure the kernels and the model on this machine."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    ops = commands.add_parser("ops", help="each op on each backend, against the machine's ceilings")
    ops.add_argument("--op", type=_words, default=(), help="names, by commas (default: all)")
    ops.add_argument(
        "--backend",
        type=_words,
        default=(),
        help="cpu, cuda, triton, torch, auto, torch.compile; on a GPU also liger, flash-attn, "
        "flashinfer (default: all that an op claims on the device, and torch)",
    )
    ops.add_argument(
        "--device", default="cpu", choices=("cpu", "cuda"), help="where to measure (default: cpu)"
    )
    ops.add_argument(
        "--family",
        type=_words,
        default=(),
        help="shapes of flash-vl, internvl, qwen2-vl, llava-onevision, ... (default: all)",
    )
    ops.add_argument(
        "--dtype", type=_words, default=(), help="bf16, fp16, fp32, by commas (default: bf16,fp32)"
    )
    ops.add_argument("--warm", action="store_true", help="the same arguments in every call")
    ops.add_argument("--seconds", type=float, help="time for each contender of a case (default: 1)")
    ops.add_argument(
        "--quick", action="store_true", help="one sample an op, 0.2 s a contender: a first look"
    )
    _threads(ops)
    model = commands.add_parser("model", help="the model beside its peers")
    model.add_argument(
        "--config",
        default="static_2b",
        choices=("static_2b", "dynamic_2b", "dynamic_iss_2b", "tiny"),
    )
    model.add_argument(
        "--weights",
        type=_words,
        default=(),
        help="bf16 (kept in --dtype), int8, int4, by commas (default: all)",
    )
    model.add_argument("--backend", default="auto", help="our backend (default: auto)")
    model.add_argument(
        "--peers",
        type=_words,
        default=None,
        help="transformers, torch.compile, openvino, llama.cpp, by commas (default: all)",
    )
    model.add_argument("--dtype", default="bf16", choices=("bf16", "fp32"))
    model.add_argument("--prompt", type=int, default=300, help="tokens of the prompt")
    model.add_argument("--tokens", type=int, default=16, help="decode steps in each repeat")
    model.add_argument("--repeats", type=int, default=5, help="timed calls of each side")
    model.add_argument(
        "--only",
        type=_words,
        default=(),
        help="vision, prefill, ttft, decode, decode8, memory, load, by commas (default: all)",
    )
    model.add_argument(
        "--layers", type=int, help="cut encoder and decoder to this depth, on all sides"
    )
    _threads(model)
    compare = commands.add_parser("compare", help="what changed between two result files of ops")
    compare.add_argument("before", metavar="BEFORE.json")
    compare.add_argument("after", metavar="AFTER.json")
    compare.add_argument(
        "--least", type=float, default=0.05, help="the least change to tell (default: 0.05)"
    )
    compare.add_argument("--markdown", metavar="FILE", help="write a pull request's summary here")
    for command in (gate, profile, page):
        command.arguments(commands)
    host = commands.add_parser("host", help="what a call of a GPU op costs on the host; no GPU")
    host.add_argument("--op", type=_words, default=(), help="names, by commas (default: all)")
    host.add_argument("--backend", type=_words, default=(), help="triton, cuda (default: both)")
    host.add_argument("--seconds", type=float, help="time for each figure (default: 0.5)")
    return parser


def _positive(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    for name in ("threads", "seconds", "prompt", "tokens", "repeats", "layers"):
        value = getattr(options, name, None)
        if value is not None and value <= 0:
            parser.error(f"--{name} is {value}; needs a number above 0")


def _one_of(
    parser: argparse.ArgumentParser, name: str, given: tuple[str, ...], known: tuple[str, ...]
) -> None:
    for word in given:
        if word not in known:
            parser.error(f"--{name} is {word!r}; needs {', '.join(known)}")


def _ops(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    from flashvl_bench import ops
    from flashvl_bench.cases import COMPILED, families
    from flashvl_bench.ceilings import DTYPES
    from flashvl_bench.gpu import peers, target
    from flashvl_bench.timing import Budget
    from flashvl_kernels import backends
    from flashvl_kernels.spec import REGISTRY

    _one_of(parser, "op", options.op, tuple(sorted(REGISTRY)))
    _one_of(parser, "backend", options.backend, ("auto", *backends.NAMES, COMPILED, *peers.NAMES))
    _one_of(parser, "dtype", options.dtype, tuple(DTYPES))
    _one_of(parser, "family", options.family, families())
    reason = target.missing() if options.device == "cuda" else None
    if reason is not None:
        parser.error(f"--device is 'cuda', but {reason}")
    budget = Budget(options.seconds or (0.2 if options.quick else 1.0), 3 if options.quick else 5)
    # PyTorch's fp16 GEMM is a hundred times slower than fp32 on CPUs without fp16 instructions.
    dtypes = options.dtype or ("bf16", "fp32")
    settings = ops.Settings(
        options.op,
        options.backend,
        dtypes,
        options.quick,
        options.warm,
        budget,
        options.device,
        options.family,
    )
    return ops.run(settings, options.json)


def _model(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    from flashvl_bench import model
    from flashvl_kernels import backends
    from flashvl_kernels.packing import FORMATS

    _one_of(parser, "only", options.only, model.PARTS)
    _one_of(parser, "weights", options.weights, FORMATS)
    _one_of(parser, "backend", (options.backend,), ("auto", *backends.NAMES))
    _one_of(parser, "peers", options.peers or (), model.PEERS)
    settings = model.Settings(
        config=options.config,
        weights=options.weights or FORMATS,
        dtype=options.dtype,
        backend=options.backend,
        peers=model.PEERS if options.peers is None else options.peers,
        prompt=options.prompt,
        tokens=options.tokens,
        repeats=options.repeats,
        layers=options.layers,
        parts=options.only or model.PARTS,
    )
    return model.run(settings, options.json)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, or 1 if a result was wrong."""
    try:
        return _run(argv)
    except BrokenPipeError:  # whoever read the output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _run(argv: list[str] | None) -> int:
    parser = _parser()
    options = parser.parse_args(argv)
    _positive(parser, options)
    if hasattr(options, "run"):
        return int(options.run(options))
    if options.command == "compare":
        from flashvl_bench import compare

        if not 0 <= options.least < 10:
            parser.error(f"--least is {options.least}; needs a share such as 0.05")
        return compare.run(options.before, options.after, options.least, options.markdown)
    if options.command == "ops" and argv is None:
        steady.restart(steady.MALLOC)
    if options.command == "host":
        from flashvl_bench import host

        return host.main(parser, options)
    if options.threads:
        import torch

        torch.set_num_threads(options.threads)
    return (_ops if options.command == "ops" else _model)(parser, options)


if __name__ == "__main__":
    sys.exit(main())
