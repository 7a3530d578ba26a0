"""The `flashvl-kernels` command: `doctor` examines the installation, `explain` a call; `compile`
makes the CUDA kernels before they are needed, `tune` chooses launches of the Triton kernels."""

from __future__ import annotations

import argparse
import sys


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="flashvl-kernels", description="Examine the kernels of this installation."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser(
        "doctor", help="what is installed, what works, and what to do about the rest"
    )
    explain = commands.add_parser("explain", help="which kernel runs an op, and why no faster one")
    explain.add_argument("op", help="an op's name, e.g. rms_norm")
    explain.add_argument("--sample", help="one of the op's samples; by default all small ones")
    explain.add_argument(
        "--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32", "float64")
    )
    explain.add_argument("--device", default="cpu", help="where the tensors lie (default: cpu)")
    ahead = commands.add_parser("compile", help="compile the CUDA kernels now, without a GPU")
    ahead.add_argument("op", nargs="*", help="names of ops (default: all with a CUDA kernel)")
    ahead.add_argument(
        "--arch", default="80,86,89,90,100,120", help="architectures, by commas (default: all six)"
    )
    tune = commands.add_parser("tune", help="time the Triton kernels' launch choices on a GPU")
    tune.add_argument("op", nargs="*", help="names of ops (default: all with a Triton kernel)")
    tune.add_argument(
        "--dtype", nargs="+", default=["bfloat16"], choices=("bfloat16", "float16", "float32")
    )
    tune.add_argument("--jobs", type=int, help="compiling processes (default: one for each CPU)")
    tune.add_argument("--seconds", type=float, help="stop after so long (default: when done)")
    tune.add_argument("--out", help="a file for every time that was measured, as JSON")
    return parser


def _explain(op: str, sample: str | None, dtype: str, device: str) -> int:
    import torch

    from flashvl_kernels import backends
    from flashvl_kernels.spec import REGISTRY

    if op not in REGISTRY:
        print(f"op is {op!r}; needs one of {', '.join(sorted(REGISTRY))}", file=sys.stderr)
        return 2
    valid = [each for each in REGISTRY[op].samples if each.error is None]
    samples = [each for each in valid if each.kind not in ("bench", "far")]
    if sample is not None:
        samples = [each for each in valid if each.name == sample]
    if not samples:
        names = ", ".join(repr(each.name) for each in valid)
        print(f"--sample is {sample!r}; {op} has {names}", file=sys.stderr)
        return 2
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # no such device, or a build without it
        print(f"--device is {device!r}: {str(error).splitlines()[0]}", file=sys.stderr)
        return 2
    for each in samples:
        call = each.build(getattr(torch, dtype), device)
        print(f"[{each.name}] {backends.explain(op, *call.args, **call.kwargs)}")
    return 0


def _tune(options: argparse.Namespace) -> int:
    import flashvl_kernels  # noqa: F401  (registers the ops)
    from flashvl_kernels import triton

    reason = triton.unavailable("cuda")
    if reason is not None:
        print(f"tune: {reason}", file=sys.stderr)
        return 1
    from flashvl_kernels.triton import tune

    return tune.main(options.op, options.dtype, options.jobs, options.seconds, options.out)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = _parser().parse_args(argv)
    if options.command == "explain":
        return _explain(options.op, options.sample, options.dtype, options.device)
    if options.command == "compile":
        from flashvl_kernels.cuda import ahead

        return ahead.main(options.op, options.arch)
    if options.command == "tune":
        return _tune(options)
    from flashvl_kernels import doctor

    return doctor.main()


if __name__ == "__main__":
    sys.exit(main())
