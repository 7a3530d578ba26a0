"""Which way each backward pass goes: what `explain` is to a call.

A backward pass cannot be explained beforehand: it depends on the gradients that arrive and on what
needs them. So it is watched.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_watchers: list[list[str]] = []
_kernels: list[str] = []  # that the pass under way has used


@contextmanager
def watch_backward() -> Iterator[list[str]]:
    """Collect a line for each backward pass of an op inside a `with` block, in the order they run:

        with fvk.watch_backward() as seen:
            loss.backward()

    "linear: by hand (CPU kernel linear_backward)"; "(PyTorch's ops)" where no kernel takes it;
    "compress_tokens: recomputed through the reference" where the op has no formulas for the call.
    None is seen on the torch backend, where autograd has the plain expressions themselves, or in a
    compiled graph, which is made of PyTorch's ops.
    """
    seen: list[str] = []
    _watchers.append(seen)
    try:
        yield seen
    finally:
        # By identity: two watchers that have seen the same are equal lists.
        _watchers[:] = [each for each in _watchers if each is not seen]


def uses(kernel: str) -> None:
    """A kernel that the backward pass under way takes."""
    if _watchers:
        _kernels.append(kernel)


def ends(op: str, by_hand: bool) -> None:
    """The backward pass of `op` has gone through its formulas, or goes through the reference."""
    if not _watchers:
        return
    kernels = ", ".join(dict.fromkeys(_kernels))
    _kernels.clear()
    formulas = f"by hand (CPU kernel {kernels})" if kernels else "by hand (PyTorch's ops)"
    line = f"{op}: {formulas if by_hand else 'recomputed through the reference'}"
    for seen in _watchers:
        seen.append(line)
