"""The options of `flashvl-bench profile`; nothing heavy is imported before they are read."""

from __future__ import annotations

from functools import partial
from typing import Any

CONFIGS = ("tiny", "static_2b", "dynamic_2b", "dynamic_iss_2b")


def arguments(commands: Any) -> None:
    """The options of the command."""
    parser = commands.add_parser("profile", help="where the time of one generated answer goes")
    parser.set_defaults(run=partial(from_options, parser))
    parser.add_argument(
        "--config", default="tiny", help=f"{', '.join(CONFIGS)}, or a checkpoint's folder"
    )
    parser.add_argument("--image", default="", help="an image file (default: the demo's first)")
    parser.add_argument("--question", default="", help="what to ask about it")
    parser.add_argument("--tokens", type=int, default=32, help="tokens to generate (default: 32)")
    parser.add_argument(
        "--dtype", choices=("bf16", "fp16", "fp32"), help="default: fp32 for tiny, else bf16"
    )
    parser.add_argument("--weights", default="bf16", choices=("bf16", "int8", "int4"))
    parser.add_argument("--backend", default="auto", help="our backend (default: auto)")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--repeats", type=int, default=7, help="answers recorded (default: 7)")
    parser.add_argument("--layers", type=int, help="cut encoder and decoder to this depth")
    parser.add_argument("--threads", type=int, help="threads of PyTorch and of the kernels")
    parser.add_argument("--nvtx", action="store_true", help="push NVTX ranges (needs a GPU)")
    parser.add_argument("--out", metavar="FOLDER", help="write flame graph, trace and rows here")
    parser.add_argument("--json", metavar="FILE", help="write the rows as a result file")
    parser.add_argument(
        "--ncu", nargs="*", metavar="CSV",
        help="print an ncu command for each CUDA kernel, or the rows of CSVs that ncu wrote",
    )  # fmt: skip


def from_options(parser: Any, options: Any) -> int:
    """The command line."""
    import torch

    from flashvl_bench.profile import answer

    if options.ncu:
        return answer.print_ncu(tuple(options.ncu))
    if options.ncu is not None:
        return answer.print_ncu_commands()
    for name in ("tokens", "repeats", "layers", "threads"):
        value = getattr(options, name)
        if value is not None and value <= 0:
            parser.error(f"--{name} is {value}; needs a number above 0")
    if options.nvtx and not torch.cuda.is_available():
        parser.error("--nvtx needs a CUDA build of PyTorch and a GPU")
    if options.threads:
        torch.set_num_threads(options.threads)
    names = ("config", "image", "question", "tokens", "weights", "backend", "device")
    settings = answer.Settings(
        **{name: getattr(options, name) for name in names},
        dtype=options.dtype or ("fp32" if options.config == "tiny" else "bf16"),
        repeats=options.repeats,
        layers=options.layers,
        nvtx=options.nvtx,
    )
    return answer.run(settings, options.out, options.json)
