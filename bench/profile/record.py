"""What a profile records: a span for each stage of an answer, and one for each op call in it.

Ops are seen where the dispatcher hands out their kernels (`flashvl_kernels.backends.choose`),
stages by wrapping the functions of `flashvl` that do them; both are put back afterwards. Decode
steps run op by op meanwhile, because a tape makes its calls without Python. What the recorder
itself costs (reading shapes, asking for the op's cost) is measured and kept apart.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from flashvl import generate
from flashvl.adapter import Adapter
from flashvl.decoder import Decoder
from flashvl.model import FlashVL
from flashvl.vision import VisionEncoder
from flashvl_bench.ceilings import NAMES
from flashvl_bench.timing import Clock
from flashvl_kernels import backends, tape
from flashvl_kernels.spec import Cost, OpSpec

ROOT = "answer"
STAGES: tuple[tuple[Any, str, str], ...] = (
    (generate, "load_image", "image: decode the file"),
    (generate, "image_to_inputs", "image: to patches"),
    (generate, "encode_prompt", "tokeniser"),
    (VisionEncoder, "forward", "vision encoder"),
    (VisionEncoder, "stitched", "vision encoder"),
    (Adapter, "forward", "adapter"),
    (FlashVL, "embed", "embed the prompt"),
    (FlashVL, "prefill_states", "prefill"),
    (Decoder, "embed", "decode step"),
    (Decoder, "extend", "decode step"),
    (generate, "_choose", "choose the token"),
    (generate, "_accept", "text out"),
)
"""Where a stage is: the owner of a function, its name, and the stage it is. Inside of another one
(prefill runs `extend`) a function is part of that one; see `Recorder.stage`."""

OUTER = frozenset(("prefill", "embed the prompt"))


@dataclass(frozen=True)
class OpCall:
    """One call of an op: the shapes of its tensors, the kernel that ran it, what it had to do."""

    op: str
    shape: str
    dtype: str
    backend: str
    kernel: str
    cost: Cost


@dataclass
class Span:
    """A stretch of time on one thread. parent: its place in the list, -1 for the root. recorder:
    seconds of it that went into recording. call: of an op, None for a stage."""

    name: str
    parent: int
    start: float
    end: float = 0.0
    recorder: float = 0.0
    call: OpCall | None = None

    @property
    def seconds(self) -> float:
        return self.end - self.start


@dataclass
class Recorder:
    """Spans in the order they began. wait: makes the device finish what was asked of it, so that a
    span's end is the end of its work. ranges: also push an NVTX range for each span."""

    clock: Clock = time.perf_counter
    wait: Callable[[], object] | None = None
    ranges: bool = False
    spans: list[Span] = field(default_factory=list)
    _stack: list[int] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """A stage around the block; nothing where one of `OUTER` or the same stage is open."""
        open_names = {self.spans[place].name for place in self._stack}
        if name in open_names or open_names & OUTER:
            yield
            return
        self._begin(name)
        try:
            yield
        finally:
            self._end()

    def run(self, spec: OpSpec, kernel: backends.Kernel, args: tuple[Any, ...]) -> Any:
        """The kernel's result, with a span for it."""
        entered = self.clock()
        span = self._begin(spec.name)
        begun = span.start
        try:
            result = kernel.run(*args)
        finally:
            ended = self._end()
        span.call = describe(spec, kernel, args, result)
        if span.parent >= 0:
            self.spans[span.parent].recorder += (begun - entered) + (self.clock() - ended)
        return result

    def _begin(self, name: str) -> Span:
        if self.wait is not None:
            self.wait()
        if self.ranges:
            torch.cuda.nvtx.range_push(f"{RANGE}{name}")
        span = Span(name, self._stack[-1] if self._stack else -1, 0.0)
        self._stack.append(len(self.spans))
        self.spans.append(span)
        span.start = self.clock()
        return span

    def _end(self) -> float:
        if self.wait is not None:
            self.wait()
        ended = self.clock()
        self.spans[self._stack.pop()].end = ended
        if self.ranges:
            torch.cuda.nvtx.range_pop()
        return ended

    def own_seconds(self) -> list[float]:
        """Of each span: its time without that of the spans in it, and without the recorder's."""
        own = [span.seconds - span.recorder for span in self.spans]
        for span in self.spans:
            if span.parent >= 0:
                own[span.parent] -= span.seconds
        return own

    def stage_of(self, span: Span) -> str:
        """The stage a span is in, its own name for a stage."""
        while span.call is not None and span.parent >= 0:
            span = self.spans[span.parent]
        return span.name


RANGE = "flashvl."
"""What NVTX ranges begin with: `ncu --nvtx-include` finds an op by it."""


def describe(spec: OpSpec, kernel: backends.Kernel, args: tuple[Any, ...], result: Any) -> OpCall:
    """The call in words and figures. The dtype is that of the first float tensor."""
    tensors = [arg for arg in args if isinstance(arg, Tensor)]
    results = result if isinstance(result, tuple) else (result,)
    floats = [t for t in (*tensors, *results) if isinstance(t, Tensor) and t.dtype in NAMES]
    matrices = [t for t in tensors if t.dim() > 1] or tensors
    shape = " ".join("x".join(map(str, tensor.shape)) for tensor in matrices)
    dtype = NAMES[floats[0].dtype] if floats else "fp32"
    return OpCall(spec.name, shape, dtype, kernel.backend, kernel.name, spec.cost(*args))


@contextmanager
def watch(recorder: Recorder) -> Iterator[None]:
    """Ops and stages go through `recorder` inside of the block; decode steps run without a tape."""
    choose = backends.choose

    def chosen(spec: OpSpec, args: tuple[Any, ...], device: str | None = None) -> backends.Kernel:
        kernel = choose(spec, args, device)
        return replace(kernel, run=lambda *given: recorder.run(spec, kernel, given))

    with ExitStack() as undo:
        undo.enter_context(tape.off())
        _patch(undo, backends, "choose", chosen)
        for owner, name, stage in STAGES:
            _patch(undo, owner, name, _staged(recorder, stage, getattr(owner, name)))
        yield


def _staged(recorder: Recorder, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        with recorder.stage(stage):
            return function(*args, **kwargs)

    return run


def _patch(undo: ExitStack, owner: Any, name: str, value: Any) -> None:
    undo.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, value)
