// What the binding hands to the tile_attention kernels.
#pragma once

#include "matrix/flash_args.h"

namespace flashvl::cpu {

// Tile t is the t-th along `outer`, `tokens` rows of it; packed tiles instead take the rows
// [starts[t], starts[t + 1]).
struct TileAttentionArgs {
  FlashArgs flash;
  int64_t tiles;
  int64_t tokens;         // of a tile; of the longest where packed
  const int64_t* starts;  // null where not packed
  int64_t group;          // heads that a task does at a time; divides `heads`
  int64_t parts;          // into which the queries of a tile and group are split
};

// Bytes of working memory that a task needs.
using TileAttentionBytes = int64_t(const TileAttentionArgs& args);
FLASHVL_DECLARE_KERNEL(TileAttentionBytes, tile_attention_bytes)

using TileAttentionTask = void(const TileAttentionArgs& args, const FlashTask& task);
FLASHVL_DECLARE_KERNEL(TileAttentionTask, tile_attention)

}  // namespace flashvl::cpu
