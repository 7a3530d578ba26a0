// What the binding hands to the stitch_tiles kernels, and the geometry that compress_tokens shares.
#pragma once

#include <cstdint>

#include "levels.h"
#include "types.h"

namespace flashvl::cpu {

enum class StitchRule : int { crop, mean, linear };

// Tiles along one axis of a canvas, in patches; see flashvl_kernels/tiles.py.
struct TileAxis {
  int64_t tiles;
  int64_t tile;
  int64_t overlap;
  int64_t border;
  StitchRule rule;
};

// A canvas of height x width positions over tiles in memory. Plain tokens are one tile of their
// own height and width. Strides count elements, between tiles and between the tokens of a tile;
// channels are contiguous.
struct Canvas {
  TileAxis down;
  TileAxis across;
  int64_t height;
  int64_t width;
  int64_t tile_stride;
  int64_t token_stride;
};

struct StitchTilesArgs {
  DType dtype;
  const void* x;
  Canvas canvas;
  int64_t channels;
  void* y;  // [images, height, width, channels], contiguous
};

// Writes the canvas positions [begin, end), counted through all images.
using StitchTilesPositions = void(const StitchTilesArgs& args, int64_t begin, int64_t end);
FLASHVL_DECLARE_KERNEL(StitchTilesPositions, stitch_tiles)

}  // namespace flashvl::cpu
