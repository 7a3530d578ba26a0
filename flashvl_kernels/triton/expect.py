"""What the compiled code of a kernel must show; tests/aot checks it for every architecture."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Expect:
    """One entry of a kernel file's `EXPECT`, by the kernel's name.

    wide_access: bound by bytes, so its global loads and stores are 128 bits wide.
    tensor_cores: has a dot, so tensor-core (matrix-core) instructions are there.
    """

    wide_access: bool = False
    tensor_cores: bool = False
