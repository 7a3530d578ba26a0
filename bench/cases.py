"""The cases of the op benchmarks: every "bench" sample of every op, per dtype and backend.

A case is timed only if the backend asked for really runs it, and only if its result is right.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from flashvl_bench.ceilings import DTYPES, NAMES
from flashvl_bench.gpu import peers
from flashvl_bench.timing import Contender, Flat
from flashvl_kernels import backends, numerics
from flashvl_kernels.spec import REGISTRY, OpSpec, Sample, capture

# A peer that is asked for like a backend: what inductor makes of the plain expression.
COMPILED = "torch.compile"


@dataclass(frozen=True)
class Case:
    """One sample of one op in one dtype: what all backends and the plain expression are given.

    device: where its calls are measured; it is judged on the CPU.
    """

    spec: OpSpec
    sample: Sample
    dtype: torch.dtype
    device: str = "cpu"

    @property
    def name(self) -> str:
        return f"{self.spec.name} [{self.sample.name}] {NAMES[self.dtype]}"

    @property
    def name_parts(self) -> tuple[str, str, str]:
        """Op, sample and dtype."""
        return self.spec.name, self.sample.name, NAMES[self.dtype]

    def flat(self) -> Flat:
        """The schema arguments, on the CPU."""
        built = self.sample.build(self.dtype)
        spec, flat = capture(self.spec.function, *built.args, **built.kwargs)
        if spec is not self.spec:
            raise ValueError(
                f"the sample {self.sample.name!r} of {self.spec.name} ends in {spec.name}"
            )
        return flat


def families() -> tuple[str, ...]:
    """The models whose shapes some bench sample has, and "stream" for the large plain ones."""
    samples = (sample for spec in REGISTRY.values() for sample in spec.samples)
    return tuple(sorted({name for sample in samples for name in sample.families}))


def placed(flat: Flat, device: str) -> Flat:
    """The same arguments on `device`, strides kept."""
    if device == "cpu":
        return flat
    return tuple(
        torch.empty_strided(a.shape, a.stride(), dtype=a.dtype, device=device).copy_(a)
        if isinstance(a, Tensor)
        else a
        for a in flat
    )


def select(
    ops: Sequence[str] = (),
    dtypes: Sequence[str] = (),
    first_only: bool = False,
    of_families: Sequence[str] = (),
    device: str = "cpu",
) -> Iterator[Case]:
    """The cases of these ops (default: all) and dtypes (default: all), in order of name.

    first_only: one sample an op. of_families: only samples of one of these (default: all). Raises
    ValueError for an unknown op.
    """
    for name in ops:
        if name not in REGISTRY:
            raise ValueError(f"--op is {name!r}; needs one of {', '.join(sorted(REGISTRY))}")
    for name in sorted(ops or REGISTRY):
        spec = REGISTRY[name]
        samples = [
            sample
            for sample in spec.samples
            if sample.kind == "bench"
            and (not of_families or set(of_families) & set(sample.families))
        ]
        for sample in samples[: 1 if first_only else None]:
            for dtype in dtypes or DTYPES:
                yield Case(spec, sample, DTYPES[dtype], device)


def asked_backends(spec: OpSpec, asked: Sequence[str] = (), device: str = "cpu") -> tuple[str, ...]:
    """The backends to measure: those asked for, or all for this device that the op claims, and
    torch."""
    claimed = (name for name in backends.candidates(device) if name in spec.kernels)
    return tuple(asked) or (*claimed, "torch")


def refusal(spec: OpSpec, asked: str, flat: Flat) -> str | None:
    """Why backend `asked` ("auto": any kernel of ours) would not run this call; None if it would.

    The answer is that of `backends.choose`, which also decides in the timed call.
    """
    if asked == COMPILED:
        return None
    if asked in peers.NAMES:
        return peers.refusal(asked, spec, flat)
    try:
        with backends.backend(asked):
            chosen = backends.choose(spec, flat).backend
            tried = backends.preference(backends.device_of(flat))
    except backends.BackendError:
        return backends.why_not(spec, asked, flat)
    if asked == "auto" and chosen == "torch":
        reasons = {name: backends.why_not(spec, name, flat) for name in tried if name != "torch"}
        return "; ".join(f"{name}: {why or backends.SLOWER}" for name, why in reasons.items())
    return None


def kernel_name(spec: OpSpec, asked: str, flat: Flat) -> tuple[str, str]:
    """The backend and the kernel that run this call when `asked` is asked for."""
    if asked == COMPILED:
        return COMPILED, "inductor"
    if asked in peers.NAMES:
        return asked, peers.MODULES[asked]
    with backends.backend(asked):
        kernel = backends.choose(spec, flat)
    return kernel.backend, kernel.name


def runner(spec: OpSpec, asked: str, flat: Flat = ()) -> Contender:
    """What is timed when `asked` is asked for, with arguments like `flat`. COMPILED compiles on its
    first call, and a peer makes its plan."""
    if asked in peers.NAMES:
        return Contender(asked, peers.Peer(asked, spec, flat))
    if asked == COMPILED:
        return Contender(asked, torch.compile(spec.reference, dynamic=False))
    return Contender(asked, spec.op, partial(backends.backend, asked))


class Judge:
    """Says whether results of a case are right, by the rule of `flashvl_kernels.numerics`."""

    def __init__(self, spec: OpSpec, flat: Flat) -> None:
        self._spec = spec
        self._plain = numerics.results(spec, spec.reference, flat)
        self._truth = numerics.oracle(spec, flat)

    def wrong(self, got: Sequence[Tensor]) -> str | None:
        """What is wrong with `got`, wherever it lies; None when it is right."""
        got = [tensor.cpu() for tensor in got]
        if len(got) != len(self._truth):
            return f"{len(got)} outputs; needs {len(self._truth)}"
        for i, (mine, plain, truth) in enumerate(zip(got, self._plain, self._truth, strict=True)):
            verdict = numerics.judge(mine, plain, truth, self._spec.tolerance)
            if not verdict.right:
                return f"output {i}: {verdict.reason}"
        return None
