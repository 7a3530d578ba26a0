"""A kernel with nothing but a dot, for the tests that look for matrix instructions."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def kernel(a, b, c):  # type: ignore[no-untyped-def]
    """c = a @ b, all [64, 64]."""
    at = tl.arange(0, 64)[:, None] * 64 + tl.arange(0, 64)[None, :]
    product = tl.dot(tl.load(a + at), tl.load(b + at))
    tl.store(c + at, product.to(c.dtype.element_ty))
