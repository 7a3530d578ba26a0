// What a position of a stitched canvas is made of: at most two tiles an axis, four in a corner.
//
// The rules are those of flashvl_kernels/tiles.py. Worked out where it is used: a division an axis
// is nothing beside a row of channels, and no table has to be filled or read.
#pragma once

#include "base.cuh"

namespace flashvl::cuda {

// Strides count elements, between tiles and between the tokens of a tile; channels are neighbours.
struct Canvas {
  int64_t rows, columns;          // of tiles
  int64_t height, width;          // of the canvas
  int64_t tile, overlap, border;  // in patches
  int64_t tile_stride, token_stride;
  int64_t crop, linear;  // the rule; neither is mean
};

// The tiles under one position of an axis: the upper (left) one, the position's place in it, and
// what it and the next one count. In the next one the place is smaller by a tile less the overlap.
struct AxisSources {
  int ways;
  int64_t tile, local;
  float share[2];
};

__device__ __forceinline__ AxisSources sources_along(const Canvas& canvas, int64_t tiles,
                                                     int64_t position) {
  const int64_t step = canvas.tile - canvas.overlap, place = position + canvas.border;
  const int64_t last = min(place / step, tiles - 1);  // the last tile that covers this position
  const int64_t local = place - last * step;
  const bool both = last > 0 && local < canvas.overlap;
  const bool before = both && (!canvas.crop || local < (canvas.overlap + 1) / 2);
  AxisSources out{both && !canvas.crop ? 2 : 1, last - before, before ? local + step : local, {}};
  // Distances of the patch's centre in half patches: whole numbers, one rounding each.
  const float whole = static_cast<float>(2 * canvas.overlap);
  const bool even = !canvas.linear;
  out.share[0] = even ? 0.5f : static_cast<float>(2 * (canvas.overlap - local) - 1) / whole;
  out.share[1] = even ? 0.5f : static_cast<float>(2 * local + 1) / whole;
  if (out.ways == 1) out.share[0] = 1.0f;
  return out;
}

// Both axes of one position of one of many images, which lie behind one another.
struct PositionSources {
  AxisSources down, across;
  int64_t offset;  // of the upper left source

  __device__ __forceinline__ bool several() const { return down.ways * across.ways > 1; }
  __device__ __forceinline__ bool has(int i, int j) const {
    return i < down.ways && j < across.ways;
  }
  __device__ __forceinline__ float share(int i, int j) const {
    return down.share[i] * across.share[j];
  }
};

// From a source to the one in the tile below, and in the tile to the right.
__device__ __forceinline__ int64_t to_lower(const Canvas& canvas) {
  const int64_t step = canvas.tile - canvas.overlap;
  return canvas.columns * canvas.tile_stride - step * canvas.tile * canvas.token_stride;
}
__device__ __forceinline__ int64_t to_right(const Canvas& canvas) {
  return canvas.tile_stride - (canvas.tile - canvas.overlap) * canvas.token_stride;
}

// `position` counts through the canvases of all images.
__device__ __forceinline__ PositionSources sources_at(const Canvas& canvas, int64_t position) {
  const int64_t line = position / canvas.width, column = position - line * canvas.width;
  const int64_t image = line / canvas.height, row = line - image * canvas.height;
  const AxisSources down = sources_along(canvas, canvas.rows, row);
  const AxisSources across = sources_along(canvas, canvas.columns, column);
  const int64_t tile = (image * canvas.rows + down.tile) * canvas.columns + across.tile;
  const int64_t token = down.local * canvas.tile + across.local;
  return {down, across, tile * canvas.tile_stride + token * canvas.token_stride};
}

}  // namespace flashvl::cuda
