"""Decode steps that are recorded once for a cache and run again for the following tokens: a tape on
the CPU (step_tape.py), a CUDA graph on a GPU (step_graph.py)."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch
from torch import Tensor, nn

from flashvl.step_graph import StepGraph
from flashvl.step_inputs import Indices
from flashvl.step_tape import StepTape
from flashvl_kernels import KVCache, extension, spec, tape

Step = Callable[[Tensor, Indices], Tensor]

# By cache, so that they go when it does; no recorded step refers to its cache itself.
_TAPES: weakref.WeakKeyDictionary[KVCache, StepTape] = weakref.WeakKeyDictionary()
_GRAPHS: weakref.WeakKeyDictionary[KVCache, StepGraph | None] = weakref.WeakKeyDictionary()
_WHY_NOT: weakref.WeakKeyDictionary[KVCache, str | None] = weakref.WeakKeyDictionary()


def explain(cache: KVCache) -> str:
    """How the last decode step of all sequences on `cache` ran: from a tape or a CUDA graph, or why
    not."""
    if cache not in _WHY_NOT:
        return "no decode step of all sequences has run on this cache"
    reason = _WHY_NOT[cache]
    return f"op by op: {reason}" if reason else str(_GRAPHS.get(cache) or _TAPES[cache])


def _why_not(rows: Tensor) -> str | None:
    """The reason that a step on these rows cannot come from a tape, whatever the cache."""
    if tape.is_off():
        return "tapes are off (flashvl_kernels.tape.off)"
    if rows.device.type not in ("cpu", "cuda"):
        return f"a tape is for the CPU, a graph for a GPU, and the rows are on {rows.device}"
    if rows.is_cpu and not tape.available():
        return f"no tape without the CPU extension ({extension.EXTENSION.reason or 'too old'})"
    if torch.is_grad_enabled():
        return "gradients are recorded; use torch.no_grad()"
    if torch.compiler.is_compiling() or spec.intercepted((rows,), rows.device.type):
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
    replay = _from_tape if rows.is_cpu else _from_graph
    return replay(layers, rows, cache, step)


def _from_tape(layers: nn.ModuleList, rows: Tensor, cache: KVCache, step: Step) -> Tensor | None:
    kept = _TAPES.get(cache)
    if kept is None or not kept.fits(layers, cache):
        kept = _TAPES[cache] = StepTape(layers, rows, cache, step)
    _WHY_NOT[cache] = kept.why_not
    if kept.first is not None:
        first, kept.first = kept.first, None
        return first
    return None if kept.why_not else kept.run(rows, cache)


def _from_graph(layers: nn.ModuleList, rows: Tensor, cache: KVCache, step: Step) -> Tensor | None:
    kept = _GRAPHS.get(cache)
    if cache not in _GRAPHS or (kept is not None and not kept.fits(layers, cache)):
        _GRAPHS[cache] = None
        _WHY_NOT[cache] = "a first step loads the kernels; the next one is captured"
        return None
    if kept is None:
        kept = _GRAPHS[cache] = StepGraph(layers, rows, cache, step)
    _WHY_NOT[cache] = kept.why_not
    return None if kept.why_not else kept.run(rows, cache)
