"""Mutations of the kernels that move rows: each must be seen, as a finding or a wrong result.

As test_mutations.py: a mutation is a textual patch, and one that no longer applies fails.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from flashvl_kernels import simt
from flashvl_kernels.spec import REGISTRY
from tests.simt.test_mutations import Fault, check_seen
from tests.simt.test_ops import flat_call

pytestmark = pytest.mark.skipif(simt.unavailable() is not None, reason=str(simt.unavailable()))


def sample(op: str, name: str, dtype: torch.dtype = torch.bfloat16) -> tuple[object, ...]:
    """The schema arguments of a sample."""
    spec = REGISTRY[op]
    return flat_call(spec, next(s for s in spec.samples if s.name == name), dtype)


def fault(op: str, name: str, file: str, old: str, new: str, seen: str) -> Fault:
    return Fault(op, file, old, new, seen, sample(op, name))


STITCH, MERGE = "stitch_tiles", "merge_image_tokens"
ROPE, CACHED = "rope_qkv", "rope_qkv_cached"

FAULTS: dict[str, Fault] = {
    "an odd overlap cut one too early": fault(
        STITCH, "odd overlap, crop", "tiling.cuh",
        "(axis.overlap + 1) / 2", "axis.overlap / 2", "output",
    ),
    "the border forgotten": fault(
        STITCH, "one tile, border dropped", "tiling.cuh",
        "position + axis.border", "position", "output",
    ),
    "shares of the two tiles swapped": fault(
        STITCH, "linear", "tiling.cuh", "way == 0 ?", "way == 1 ?", "output",
    ),
    "a source that is not there multiplied by 0": fault(
        STITCH, "NaN and Inf", "token_canvas.cuh", "if (from.has(i, j)) {", "{", "output",
    ),
    "the last tile not held to the grid": fault(
        STITCH, "linear", "tiling.cuh",
        "min(place / step, axis.tiles - 1)", "place / step", "output",
    ),
    "channels guarded one vector too late": fault(
        STITCH, "tokens with a gap, crop", "copy_row.cuh",
        "part.at(v) < columns) to.store", "part.at(v) <= columns) to.store",
        "global_out_of_bounds",
    ),
    "positions guarded one too late": fault(
        STITCH, "two by three, crop", "stitch_tiles.cuh",
        "position < args.positions", "position <= args.positions", "global_out_of_bounds",
    ),
    # In fp32: offsets of a copy count words of 4 bytes.
    "a tile's offset of 32 bits": Fault(
        STITCH, "token_canvas.cuh",
        "across, tile * canvas.tile_stride",
        "across, static_cast<int32_t>(tile * canvas.tile_stride)",
        "output", sample(STITCH, "third tile past 2^31", torch.float32),
    ),
    "no barrier before the warps' counts are read": fault(
        MERGE, "two rows, three images", "merge_image_tokens.cuh",
        "count_bits(votes));\n  sync_block();", "count_bits(votes));", "shared_race",
    ),
    "no barrier before the ranks are read": fault(
        MERGE, "two rows, three images", "merge_image_tokens.cuh",
        "before += here;\n  sync_block();", "before += here;", "shared_race",
    ),
    "a sentinel that counts itself": fault(
        MERGE, "one image", "merge_image_tokens.cuh",
        "(uint32_t{1} << lane()) - 1", "(uint32_t{2} << lane()) - 1", "output",
    ),
    "only the first sentinel of an image": fault(
        MERGE, "one image", "merge_image_tokens.cuh",
        "id == kFirstOfImage || id == kRestOfImage", "id == kFirstOfImage", "output",
    ),
    "a negative id as an address": fault(
        MERGE, "one image", "merge_image_tokens.cuh",
        "mine && rank < args.image_rows ? rank : -1",
        "mine ? args.ids.load(row * args.ids_stride) : -1", "output",
    ),
    "image rows not guarded": Fault(
        MERGE, "merge_image_tokens.cuh", "mine && rank < args.image_rows ?", "mine ?",
        "global_out_of_bounds",
        (torch.ones(9, 8), torch.full((9,), -201), torch.ones(4, 8)),
    ),
    "sentinels of earlier blocks forgotten": fault(
        MERGE, "more tokens than a block ranks", "merge_image_tokens.cuh",
        "i < end; i += kMergeCounted", "i < 0; i += kMergeCounted", "output",
    ),
    "an embedding's offset of 32 bits": Fault(
        MERGE, "rows.cuh", "return row * inner_stride;",
        "return static_cast<int32_t>(row * inner_stride);", "output",
        sample(MERGE, "third row past 2^31", torch.float32),
    ),
    "a sine of the wrong sign": fault(
        ROPE, "Qwen2 heads", "rope_qkv.cuh", "-(right * sine[i])", "right * sine[i]", "output"
    ),
    "values rotated too": fault(
        ROPE, "Qwen2 heads", "rope_qkv.cuh",
        "head < args.heads + args.kv_heads)", "head < args.heads + 2 * args.kv_heads)", "output",
    ),
    "lanes that swap what they need themselves": fault(
        ROPE, "rows are positions", "rope_qkv.cuh", "odd ? a[i] : b[i]", "odd ? b[i] : a[i]",
        "output",
    ),
    "lanes paired over an odd number of vectors": fault(
        ROPE, "head dim 80, one position", "rope_qkv.cuh", "vectors % 2 == 0", "true", "output"
    ),
    "a lane that leaves before the swap": fault(
        ROPE, "Qwen2 heads", "rope_qkv.cuh",
        "const bool inside = row < args.rows;",
        "const bool inside = true;\n  if (lane() == 5) return;", "divergent_collective",
    ),
    "a row's offset of 32 bits": fault(
        ROPE, "third row past 2^31", "rope_qkv.cuh",
        "args.qkv + row * args.qkv_row", "args.qkv + static_cast<int32_t>(row * args.qkv_row)",
        "output",
    ),
    "a slot of -1 as an address": fault(
        CACHED, "two sequences, padding skipped", "rope_qkv.cuh",
        "slot >= 0 && slot <", "slot <", "output",
    ),
    "the capacity of a sequence forgotten": fault(
        CACHED, "two sequences, padding skipped", "rope_qkv.cuh",
        "kept ? slot / args.capacity : 0", "0", "output",
    ),
    "a sequence's offset of 32 bits": fault(
        CACHED, "sequences past 2^31", "rope_qkv.cuh",
        "sequence * to.sequence", "static_cast<int32_t>(sequence * to.sequence)", "output",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_seen(name: str, tmp_path: Path) -> None:
    check_seen(FAULTS[name], name, tmp_path)
