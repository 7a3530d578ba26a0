"""What the ops that move rows read and write, against the bytes that must move."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from flashvl_kernels import simt
from flashvl_kernels.cuda.device import L4
from flashvl_kernels.spec import REGISTRY
from tests.simt.test_ops import normal, wrong

pytestmark = pytest.mark.skipif(simt.unavailable() is not None, reason=str(simt.unavailable()))

# At the widths of the models, aligned: schema arguments.
CALLS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "stitch_tiles, mean": ("stitch_tiles", (normal(4, 64, 1536), 2, 2, 8, 2, "mean", 0)),
    "stitch_tiles, linear in a border": (
        "stitch_tiles",
        (normal(4, 64, 1152), 2, 2, 8, 4, "linear", 1),
    ),
    "stitch_tiles, crop": ("stitch_tiles", (normal(6, 36, 1536), 2, 3, 6, 2, "crop", 0)),
    "stitch_tiles, CLS dropped": (
        "stitch_tiles",
        (normal(2, 17, 1536)[:, 1:], 1, 2, 4, 1, "crop", 0),
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_every_byte_moves_once_in_16_byte_accesses(name: str) -> None:
    """At most 1.05 times the bytes that must move, also where no cache helps, in whole sectors."""
    op, flat = CALLS[name]
    spec = REGISTRY[op]
    result = simt.call(spec, flat, L4)
    assert not wrong(spec, flat, result), "\n".join(wrong(spec, flat, result))
    needed, counters = spec.cost(*flat).bytes, result.counters
    assert result.bytes_from_memory <= 1.05 * needed
    assert result.bytes_moved <= 1.05 * needed
    assert result.sector_efficiency >= 0.95
    wide, narrow = counters["wide_accesses"], counters["global_reads"] + counters["global_writes"]
    assert wide == narrow


@pytest.mark.parametrize("channels", [1538, 1537])
def test_odd_rows_are_copied_by_the_widest_word_that_fits(channels: int) -> None:
    """Two or four bytes a lane still fill sectors but at the ends of a row."""
    spec = REGISTRY["stitch_tiles"]
    flat = (normal(2, 16, channels), 1, 2, 4, 1, "crop", 0)
    result = simt.call(spec, flat, L4)
    assert not wrong(spec, flat, result)
    assert result.launches[0].kernel.expression == (
        "stitch_tiles_kernel<float, 1, false>"
        if channels % 2 == 0
        else "stitch_tiles_kernel<BF16, 1, false>"
    )
    assert result.bytes_from_memory <= 1.05 * spec.cost(*flat).bytes
    assert flat[0].dtype == torch.bfloat16
