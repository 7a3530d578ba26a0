"""Decode steps from a tape (flashvl_kernels/tape.py): the layers of one step, recorded when a cache
sees its first, and run again for the following ones."""

from __future__ import annotations

import weakref
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flashvl_kernels import KVCache, backends, extension, spec, tape

# Calls that a layer makes: the two linear maps, rope, attention, and the MLP.
CALLS = 5


@dataclass(frozen=True)
class Indices:
    """Where the rows of a decode step stand, in memory that the next step writes over."""

    positions: Tensor
    slots: Tensor
    lengths: Tensor
    _memory: tuple[array[int], array[int], array[int]]

    @classmethod
    def of(cls, batch: int) -> Indices:
        """Zeros for `batch` sequences."""
        memory = (array("q", [0] * batch), array("q", [0] * batch), array("q", [0] * batch))
        positions, slots, lengths = (torch.frombuffer(m, dtype=torch.int64) for m in memory)
        return cls(positions, slots, lengths, memory)

    def write(self, lengths: Sequence[int], capacity: int) -> None:
        """The positions after `lengths`, one a sequence."""
        positions, slots, after = self._memory
        for b, length in enumerate(lengths):
            positions[b], slots[b], after[b] = length, b * capacity + length, length + 1


class StepTape:
    """The layers of a decode step on one cache."""

    def __init__(
        self,
        layers: nn.ModuleList,
        rows: Tensor,
        cache: KVCache,
        step: Callable[[Tensor, Indices], Tensor],
    ) -> None:
        self._layers = layers
        self._backends = backends.preference("cpu")
        self._cache = [*cache.k, *cache.v]
        self._weights = [
            (held, name, tensor)
            for module in layers.modules()
            for held in (module._parameters, module._buffers)
            for name, tensor in held.items()
        ]
        # Not inference tensors, whatever the caller's mode: later steps write over these.
        with torch.inference_mode(False), torch.no_grad():
            self._rows = torch.empty_like(rows)
            self._indices = Indices.of(cache.batch)
            self._write(rows, cache)
            self._states, self._tape = tape.record(lambda: step(self._rows, self._indices))
        self.first: Tensor | None = self._states.clone()  # of the step that was recorded
        self.calls = len(self._tape)
        self.why_not = None
        if self.calls != CALLS * len(layers):
            self.why_not = (
                f"{self.calls} of {CALLS * len(layers)} calls ran on CPU kernels that a tape holds "
                f"(backends in use: {', '.join(self._backends)})"
            )

    def fits(self, layers: nn.ModuleList, cache: KVCache) -> bool:
        """Nothing that was recorded has been replaced since: weights, cache memory, backends."""
        now = [*cache.k, *cache.v]
        return (
            layers is self._layers
            and len(now) == len(self._cache)
            and all(a is b for a, b in zip(now, self._cache, strict=True))
            and all(held.get(name) is tensor for held, name, tensor in self._weights)
            and self._backends == backends.preference("cpu")
        )

    def run(self, rows: Tensor, cache: KVCache) -> Tensor:
        """The states of one more row a sequence."""
        self._write(rows, cache)
        self._tape.run()
        return self._states.clone()

    def _write(self, rows: Tensor, cache: KVCache) -> None:
        self._rows.copy_(rows)
        self._indices.write(cache.lengths, cache.capacity)


# By cache, so that they go when it does; no tape refers to its cache itself.
_TAPES: weakref.WeakKeyDictionary[KVCache, StepTape] = weakref.WeakKeyDictionary()
_WHY_NOT: weakref.WeakKeyDictionary[KVCache, str | None] = weakref.WeakKeyDictionary()


def explain(cache: KVCache) -> str:
    """How the last decode step of all sequences on `cache` ran: from a tape, or why not."""
    if cache not in _WHY_NOT:
        return "no decode step of all sequences has run on this cache"
    reason = _WHY_NOT[cache]
    return f"op by op: {reason}" if reason else f"a tape of {_TAPES[cache].calls} calls"


def _why_not(rows: Tensor) -> str | None:
    """The reason that a step on these rows cannot come from a tape, whatever the cache."""
    if not tape.available():
        return f"no tape without the CPU extension ({extension.EXTENSION.reason or 'too old'})"
    if tape.is_off():
        return "tapes are off (flashvl_kernels.tape.off)"
    if rows.device.type != "cpu":
        return f"a tape is for the CPU, and the rows are on {rows.device}"
    if torch.is_grad_enabled():
        return "gradients are recorded; use torch.no_grad()"
    if torch.compiler.is_compiling() or spec.intercepted((rows,), "cpu"):
        return "a mode, autocast, a transform or a subclass of Tensor wants to see the calls"
    return None


def run(
    layers: nn.ModuleList,
    rows: Tensor,
    cache: KVCache,
    step: Callable[[Tensor, Indices], Tensor],
) -> Tensor | None:
    """The states after `layers` of one row a sequence of the cache, or None: compute them yourself.

    step(rows, indices) runs the layers once with ops of flashvl_kernels only.
    """
    _WHY_NOT[cache] = _why_not(rows)
    if _WHY_NOT[cache]:
        return None
    kept = _TAPES.get(cache)
    if kept is None or not kept.fits(layers, cache):
        kept = _TAPES[cache] = StepTape(layers, rows, cache, step)
    _WHY_NOT[cache] = kept.why_not
    if kept.first is not None:
        first, kept.first = kept.first, None
        return first
    return None if kept.why_not else kept.run(rows, cache)
