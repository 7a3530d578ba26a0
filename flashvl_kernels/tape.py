"""`record`: op calls kept to be run again without the interpreter between them.

What CUDA graphs are for kernel launches, for calls of the CPU extension: a decode step of a 2 B
model is 140 of them, each on one row, and between two of them the weights that stream by push the
interpreter out of the cache. A tape computes the same calls into the same tensors again, from what
those hold by then, and checks shapes, dtypes and indices as each call does.

Recorded are the ops on a decoder's path: linear, swiglu_mlp, decode_attention and rope_qkv with a
cache. Whoever records compares `len(tape)` with the calls made: one that ran on another backend is
not on the tape, and neither is anything PyTorch computed itself.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

import torch

from flashvl_kernels import extension

Result = TypeVar("Result")
_wanted: ContextVar[bool] = ContextVar("flashvl_tape", default=True)


@contextmanager
def off() -> Iterator[None]:
    """No tape inside a `with` block: for whoever wants to see every call, as a profiler does."""
    token = _wanted.set(False)
    try:
        yield
    finally:
        _wanted.reset(token)


def is_off() -> bool:
    """The caller is inside of `off()`."""
    return not _wanted.get()


class Tape:
    """Recorded calls. They keep their tensors alive, and read what those hold when run."""

    def __init__(self, handle: int) -> None:
        self._handle = handle
        weakref.finalize(self, torch.ops.flashvl_cpu.tape_free, handle)

    def __len__(self) -> int:
        return int(torch.ops.flashvl_cpu.tape_length(self._handle))

    def run(self) -> None:
        """Compute all calls again, in order. Raises what a call raises, and stops there."""
        torch.ops.flashvl_cpu.tape_run(self._handle)


def available() -> bool:
    """The extension is there and can record."""
    return extension.has("tape_run")


def record(function: Callable[[], Result]) -> tuple[Result, Tape]:
    """Run `function` and return its result and a tape of the calls this thread made in it.

    Raises RuntimeError where the thread is recording already or the extension is missing.
    """
    if not available():
        raise RuntimeError(
            f"record: needs the CPU extension, and {extension.EXTENSION.reason or 'it is too old'}"
        )
    torch.ops.flashvl_cpu.tape_begin()
    try:
        result = function()
    finally:
        tape = Tape(torch.ops.flashvl_cpu.tape_end())
    return result, tape
