"""What the compiled code of a kernel must show; tests/aot checks it for every architecture."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Expect:
    """One entry of a kernel file's `EXPECT`, by the kernel's name.

    wide_access: bound by bytes, so its global loads and stores are 128 bits wide, but for up to
    `narrow` instructions that read what is small (ids, lengths).
    tensor_cores: has a dot, so tensor-core (matrix-core) instructions are there in bf16 and fp16.
    """

    wide_access: bool = False
    narrow: int = 0
    tensor_cores: bool = False
