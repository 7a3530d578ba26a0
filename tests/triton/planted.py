"""A fault planted into a kernel's source, for the tests that must see it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Planted:
    """`old`, which the kernel file holds once, becomes `new`; the call of `sample` must show it.

    shows: a regular expression for the report: of an access "outside", a "race", an "undefined"
    result, or "wrong" (the judge's verdict) or "rounding" (BIT_EQUAL of the kernel file).
    file: the stem of the file of flashvl_kernels/triton that holds `old`, where the op's own does
    not: device functions that it imports.
    """

    name: str
    old: str
    new: str
    sample: str
    shows: str
    dtype: str = "bf16"
    one_processor: bool = False
    file: str = ""
