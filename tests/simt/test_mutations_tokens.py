"""Mutations of the kernels around tokens: each must be seen, as a finding or as a wrong result.

As test_mutations.py: a mutation is a textual patch, and one that no longer applies fails.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from flashvl_kernels import simt
from flashvl_kernels.spec import REGISTRY, Maker
from flashvl_kernels.tiles import TileGrid
from tests.simt.test_mutations import Fault, check_seen
from tests.simt.test_ops import flat_call

pytestmark = pytest.mark.skipif(simt.unavailable() is not None, reason=str(simt.unavailable()))


def fault(op: str, name: str, file: str, old: str, new: str, seen: str) -> Fault:
    """On the sample called `name`, in bf16."""
    spec = REGISTRY[op]
    sample = next(s for s in spec.samples if s.name == name)
    return Fault(op, file, old, new, seen, flat_call(spec, sample, torch.bfloat16))


COMPRESS, IMAGE, HEAD = "compress_tokens", "image_to_patches", "argmax_head"

HALF = [0.5, 0.5, 0.5]
TALL = (
    Maker(torch.bfloat16).image(500, 100), *TileGrid(1, 1, 2).flat(),
    HALF, HALF, 16, torch.bfloat16,
)  # fmt: skip
"""Rows first, some of a block's outputs at a time."""

FAULTS = {
    "padding read from the next row": fault(
        COMPRESS, "Unfold order, 7 padded to 8", "compress_taps.cuh",
        "if (row >= args.height() || col >= args.width()) return values;", "", "output",
    ),
    "the norm over the padding": fault(
        COMPRESS, "norm first, then padding", "compress_tokens.cuh",
        "static_cast<bool>(args.weight) && inside", "static_cast<bool>(args.weight)", "output",
    ),
    "rows and columns of a block swapped": fault(
        COMPRESS, "shuffle 3, not square", "compress_taps.cuh",
        "const int row = at.row * args.factor + part / args.factor;",
        "const int row = at.row * args.factor + part % args.factor;", "output",
    ),
    "words traded with the wrong lane": fault(
        COMPRESS, "channels whole vectors, Unfold order", "compress_tokens.cuh",
        "if (from == other) y", "if (from == self) y", "output",
    ),
    "an overlap cut one too late": fault(
        COMPRESS, "bilinear from a blended canvas", "tiling.cuh",
        "position + axis.border", "position + axis.border + 1", "output",
    ),
    "shares of the two tiles swapped": fault(
        COMPRESS, "85 channels, blended, RMSNorm", "tiling.cuh",
        "way == 0 ?", "way == 1 ?", "output",
    ),
    "bins that end one too early": fault(
        COMPRESS, "adaptive, bins of 9x5", "compress_taps.cuh",
        "ceil_div(wide + size, out)", "(wide + size) / out - 1", "output",
    ),
    "a neighbour past the canvas": fault(
        COMPRESS, "bilinear up", "compress_taps.cuh",
        "const int row = min(down.first + a, args.height() - 1);",
        "const int row = down.first + a;", "global_out_of_bounds",
    ),
    "a tile's offset of 32 bits": fault(
        COMPRESS, "third image past 2^31", "token_canvas.cuh",
        "across, tile * canvas.tile_stride",
        "across, static_cast<int32_t>(tile * canvas.tile_stride)", "global_out_of_bounds",
    ),
    "rows filtered before they are there": fault(
        IMAGE, "reduced to one tile", "image_to_patches.cuh",
        "sync_block();  // some rows are there", "// some rows are there", "shared_race",
    ),
    "the result over rows that are still read": fault(
        IMAGE, "reduced to one tile", "image_to_patches.cuh",
        "sync_block();  // some more", "// some more", "shared_race",
    ),
    "pixels of another block": fault(
        IMAGE, "reduced to one tile", "image_stage.cuh",
        "to.first_pixel * from.pixel_stride +", "", "output",
    ),
    "a row's bytes from another phase": fault(
        IMAGE, "reduced to one tile", "image_stage.cuh", "both >> 8 * left", "both >> 32", "output",
    ),
    "the bytes of a word that two warps share": fault(
        IMAGE, "reduced to one tile", "image_stage.cuh", "const bool ends = lane() == kWarp - 1;",
        "const bool ends = false;", "shared_uninitialised",
    ),
    "columns of a turned image": fault(
        IMAGE, "turned a quarter", "image_to_patches.cuh", "to_.turned ? down : across",
        "to_.turned ? across : across", "output",
    ),
    "more rows over those that are still read": Fault(
        IMAGE, "image_to_patches.cuh", "sync_block();  // more rows", "// more rows", "shared_race",
        TALL,
    ),
    "rows filtered down before they are there": Fault(
        IMAGE, "image_to_patches.cuh", "sync_block();  // the new rows", "// the new rows",
        "shared_race", TALL,
    ),
    "rows past the last slot": Fault(
        IMAGE, "image_filter.cuh", "if (slot == from.slots) slot = 0;", "", "output", TALL,
    ),
    "weights of the first outputs": fault(
        IMAGE, "reduced to one tile", "image_filter.cuh",
        "static_cast<int64_t>(begin) * from.groups * 4", "0", "output",
    ),
    "parts filtered before they are there": fault(
        IMAGE, "reduced to one tile, in parts", "image_to_patches.cuh",
        "sync_block();  // the rows are there", "// the rows are there", "shared_race",
    ),
    "parts replaced while they are read": fault(
        IMAGE, "reduced to one tile, in parts", "image_to_patches.cuh",
        "sync_block();  // the next rows", "// the next rows", "shared_race",
    ),
    "rounded down": fault(
        IMAGE, "reduced to one tile", "image_filter.cuh",
        "1 << (kFraction - 1);  // rounds", "0;  //", "output",
    ),
    "not clipped": fault(
        IMAGE, "black and white", "image_filter.cuh", "min(max(at[i] >> kFraction, 0), 255)",
        "(at[i] >> kFraction) & 255", "output",
    ),
    "rows past the end not filled": fault(
        IMAGE, "reduced to one tile", "image_to_patches.cuh",
        "clear(between, end, between.first_row + between.slots, 0, 3 * between.pixels);", "",
        "shared_uninitialised",
    ),
    "vectors that leave the image": fault(
        IMAGE, "cropped view", "image_stage.cuh",
        "first >= 0 && first + kBytes <= from.span", "true", "global_out_of_bounds",
    ),
    "tiles side by side": fault(
        IMAGE, "enlarged to overlapping tiles", "image_to_patches.cuh",
        "number % to.cols * to.step", "number % to.cols * to.tile", "output",
    ),
    "elements of the block before": fault(
        IMAGE, "patches of one pixel", "image_to_patches.cuh",
        "if (i + k >= shift && i + k < shift + count) {", "if (i + k < shift + count) {", "output",
    ),
    "keys read before they are there": fault(
        HEAD, "rows", "argmax_head.cuh",
        "store_keys<kWide>(args, x, first, rows, keys);\n    sync_block();",
        "store_keys<kWide>(args, x, first, rows, keys);", "shared_race",
    ),
    "rows multiplied before they are normalised": fault(
        HEAD, "rows", "argmax_head.cuh", "  sync_block();\n}\n\n// The keys", "}\n\n// The keys",
        "shared_race",
    ),
    "words that are not there": fault(
        HEAD, "ties, int8, every word", "argmax_head.cuh",
        "word < args.vocabulary.words ? key_of(round_to<T>(d[i]), word) : kNoWord",
        "key_of(round_to<T>(d[i]), word)", "output",
    ),
    "columns past the last one": fault(
        HEAD, "odd sizes, int4", "vocabulary.cuh", "c + i * kEach < w.columns", "true",
        "global_out_of_bounds",
    ),
    "scales of another word": fault(
        HEAD, "odd sizes, int4", "vocabulary.cuh", "lane() / 4 % 4 * kGroups",
        "lane() / 4 % 2 * kGroups", "output",
    ),
    "the higher of equal words": fault(
        HEAD, "ties", "best_words.cuh", "(0xffffffffu - static_cast<uint32_t>(word))",
        "static_cast<uint32_t>(word)", "output",
    ),
    "logits compared unrounded": fault(
        HEAD, "ties by rounding", "argmax_head.cuh", "key_of(round_to<T>(d[i]), word)",
        "key_of(d[i], word)", "output",
    ),
    "negative logits in the wrong order": fault(
        HEAD, "ties, int8, every word", "best_words.cuh",
        "bits ^ (bits >> 31 & 0x7fffffff);", "bits;", "output",
    ),
    "halves of a fragment swapped": fault(
        HEAD, "rows", "vocabulary.cuh", "column_pair<T, kFormat>(low, c + 2)",
        "column_pair<T, kFormat>(low, c)", "output",
    ),
    "the nibbles of a byte swapped": fault(
        HEAD, "odd sizes, int4", "vocabulary.cuh", "i % 2 ? byte >> 4 : byte & 15",
        "i % 2 ? byte & 15 : byte >> 4", "output",
    ),
    "merged by the last block but one": fault(
        HEAD, "ties of 1120 words, the best 70", "arrival.cuh", "== blocks - 1", "== blocks - 2",
        "output",
    ),
    "a row's offset of 32 bits": fault(
        HEAD, "third row past 2^31", "rows.cuh", "return row * inner_stride;",
        "return static_cast<int32_t>(row * inner_stride);", "global_out_of_bounds",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_seen(name: str, tmp_path: Path) -> None:
    check_seen(FAULTS[name], name, tmp_path)
