"""One sample through its CUDA kernel: `python -m flashvl_kernels.simt run <op> --sample "..."`."""

from __future__ import annotations

import argparse
import sys

import flashvl_kernels  # noqa: F401  (fills the registry)
from flashvl_kernels import numerics, simt
from flashvl_kernels.cuda.device import DEVICES
from flashvl_kernels.spec import REGISTRY, OpSpec, Sample, capture


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m flashvl_kernels.simt")
    commands = parser.add_subparsers(required=True, metavar="command")
    run = commands.add_parser("run", help="run samples of an op on the CPU, thread by thread")
    run.add_argument("op", choices=sorted(REGISTRY))
    run.add_argument("--sample", help="its name in flashvl_kernels/ops/<op>.py; default: the first")
    run.add_argument("--dtype", choices=sorted(simt.DTYPES), default="bf16")
    run.add_argument("--device", choices=[d.name for d in DEVICES], default=DEVICES[0].name)
    run.add_argument("--counters", action="store_true", help="print what the launches moved")
    return parser.parse_args()


def _sample(spec: OpSpec, name: str | None) -> Sample:
    found = [s for s in spec.samples if s.kind != "hostile" and (name is None or s.name == name)]
    if not found:
        names = ", ".join(repr(s.name) for s in spec.samples if s.kind != "hostile")
        sys.exit(f"simt: {spec.name} has no sample {name!r}; it has {names}")
    return found[0]


def _print_counters(spec: OpSpec, flat: tuple[object, ...], result: simt.Result) -> None:
    needed = spec.cost(*flat).bytes
    print(f"  bytes needed {needed}, from memory {result.bytes_from_memory}", end="")
    print(f" ({result.bytes_from_memory / needed:.3f}x)" if needed else "")
    print(f"  sector efficiency {result.sector_efficiency:.3f}")
    for name, count in result.counters.items():
        if count:
            print(f"  {name.replace('_', ' ')} {count}")


def main() -> int:
    """Returns 1 where the result is wrong or something was found."""
    options = _arguments()
    spec = REGISTRY[options.op]
    sample = _sample(spec, options.sample)
    built = sample.build(simt.DTYPES[options.dtype])
    _, flat = capture(spec.function, *built.args, **built.kwargs)
    device = next(d for d in DEVICES if d.name == options.device)
    try:
        result = simt.call(spec, flat, device)
    except simt.SimtError as error:
        sys.exit(str(error))
    print(f"{spec.name} [{sample.name}] {options.dtype}, launched as on {device.name}")
    for launch in result.launches:
        print(f"  {launch.kernel.expression}, grid {launch.grid}, block {launch.block}")
    plain, truth = numerics.results(spec, spec.reference, flat), numerics.oracle(spec, flat)
    wrong = False
    got = (*result.outputs, *result.mutated)
    for i, (g, p, t) in enumerate(zip(got, plain, truth, strict=True)):
        verdict = numerics.judge(g, p, t, spec.tolerance)
        wrong |= not verdict.right
        print(f"  output {i}: {'right' if verdict.right else 'WRONG, ' + verdict.reason}")
    if options.counters:
        _print_counters(spec, flat, result)
    for finding in result.findings:
        print(f"  {finding}")
    return 1 if wrong or result.findings else 0


if __name__ == "__main__":
    sys.exit(main())
