// What the binding hands to the stitched_tile_attention kernels.
#pragma once

#include "matrix/flash_args.h"

namespace flashvl::cpu {

enum class StitchRule : int { crop, mean, linear };

// The tiling of flashvl_kernels/tiles.py. q, k and v are [images * rows * cols, tile * tile, heads,
// D]; `out` is [images, canvas, heads, D].
struct StitchedTileAttentionArgs {
  FlashArgs flash;
  int64_t images;
  int64_t rows;
  int64_t cols;
  int64_t tile;
  int64_t overlap;
  int64_t border;
  StitchRule rule;
  int64_t canvas_rows;
  int64_t canvas_cols;
  int64_t bands;  // of canvas rows, into which the work on an image and head is split
};

// Bytes of working memory that a task needs.
using StitchedTileAttentionBytes = int64_t(const StitchedTileAttentionArgs& args);
FLASHVL_DECLARE_KERNEL(StitchedTileAttentionBytes, stitched_tile_attention_bytes)

using StitchedTileAttentionTask = void(const StitchedTileAttentionArgs& args,
                                       const FlashTask& task);
FLASHVL_DECLARE_KERNEL(StitchedTileAttentionTask, stitched_tile_attention)

}  // namespace flashvl::cpu
