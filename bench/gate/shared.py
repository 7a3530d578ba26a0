"""Arguments that both sides of a gate read from the same physical memory.

Where its pages happen to lie makes a process some percent faster or slower for as long as it lives,
as does its part of a cache that other machines share. Two processes of one checkout were seen to
differ by 5 to 40 % on kernels bound by memory, and by 1 to 3 % on common arguments. So one side
lends its arguments, in files without a name (memfd, Linux), and the other maps them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor, UntypedStorage

from flashvl_bench.timing import Flat


class Lent:
    """Arguments moved into memory that other processes of this user can map.

    flat: the arguments there. paths: of each one's memory; None where it is no plain CPU tensor.
    OSError where the system has no such memory, or not enough of it.
    """

    def __init__(self, flat: Flat) -> None:
        self.paths: list[str | None] = []
        self._files: list[int] = []
        args = []
        try:
            for arg in flat:
                path = self._file(arg.untyped_storage().nbytes()) if _movable(arg) else None
                self.paths.append(path)
                args.append(arg if path is None else _at(path, arg))
        except OSError:
            self.close()
            raise
        for moved, arg in zip(args, flat, strict=True):
            if moved is not arg:
                moved.untyped_storage().copy_(arg.untyped_storage())
        self.flat: Flat = tuple(args)

    def close(self) -> None:
        """Give the names up. Whoever has mapped the memory keeps it."""
        while self._files:
            os.close(self._files.pop())

    def _file(self, size: int) -> str:
        if not hasattr(os, "memfd_create"):
            raise OSError("this system has no memfd_create")
        self._files.append(os.memfd_create("flashvl-gate"))
        # Too little memory is an error here; later, it would end the process.
        os.posix_fallocate(self._files[-1], 0, size)
        return f"/proc/{os.getpid()}/fd/{self._files[-1]}"


def borrowed(flat: Flat, paths: Sequence[str | None]) -> Flat | None:
    """The arguments in the memory that another process lent; None unless they are bit for
    bit these. OSError where it cannot be mapped."""
    if [_movable(arg) for arg in flat] != [path is not None for path in paths]:
        return None
    args = []
    for arg, path in zip(flat, paths, strict=True):
        if path is not None:
            if os.stat(path).st_size != arg.untyped_storage().nbytes():
                return None
            theirs = _at(path, arg)
            if not torch.equal(_bits(theirs), _bits(arg)):
                return None
            arg = theirs
        args.append(arg)
    return tuple(args)


def _movable(arg: object) -> bool:
    return (
        type(arg) is Tensor
        and arg.device.type == "cpu"
        and arg.layout == torch.strided
        and not arg.requires_grad
        and arg.untyped_storage().nbytes() > 0
    )


def _at(path: str, like: Tensor) -> Tensor:
    """A tensor laid out as `like` in the memory behind a path."""
    memory = UntypedStorage.from_file(path, True, like.untyped_storage().nbytes())
    return torch.empty(0, dtype=like.dtype).set_(
        memory, like.storage_offset(), like.size(), like.stride()
    )


def _bits(tensor: Tensor) -> Tensor:
    """The bytes of the elements, so that a NaN equals itself."""
    return tensor.contiguous().flatten().view(torch.uint8)
