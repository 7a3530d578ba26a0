"""Device functions shared by the kernels: where the elements of a row lie."""

from __future__ import annotations

import triton
import triton.language as tl  # noqa: F401  (TRITON_INTERPRET looks for it here)


@triton.jit
def row_offsets(row, inner, outer_stride, inner_stride):  # type: ignore[no-untyped-def]
    """The first element of each row of a `launch.Rows`, as 64-bit offsets; `row` is int64."""
    return row // inner * outer_stride + row % inner * inner_stride
