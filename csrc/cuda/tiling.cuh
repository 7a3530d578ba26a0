// What a position of a canvas of overlapping tiles is made of: at most two tiles an axis.
//
// The rules are those of flashvl_kernels/tiles.py, worked out where they are used: a division an
// axis is nothing beside a row of channels, and no table has to be filled or read. The axes are
// alike, and their shares multiply. Places are 32 bits, for a canvas has fewer than 2^31 positions.
#pragma once

#include "base.cuh"

namespace flashvl::cuda {

enum class TileRule : int { crop, mean, linear };

// In patches, but for the number of tiles; length: of the canvas.
struct TileAxis {
  int tiles, tile, overlap, border, length;

  __device__ __forceinline__ int step() const { return tile - overlap; }
};

// TileGrid of flashvl_kernels/tiles.py.
struct Tiling {
  TileAxis down, across;
  int rule;     // TileRule
  int blended;  // some position has several sources

  __device__ __forceinline__ bool is(TileRule other) const {
    return rule == static_cast<int>(other);
  }
};

// What the upper (left) and the lower (right) of two tiles count, `local` patches into the lower.
__device__ __forceinline__ float share_of(const Tiling& tiling, const TileAxis& axis, int way,
                                          int local) {
  if (tiling.is(TileRule::mean)) return 0.5f;
  // Distances of the patch's centre in half patches: whole numbers, one rounding.
  const int distance = way == 0 ? 2 * (axis.overlap - local) - 1 : 2 * local + 1;
  return static_cast<float>(distance) / static_cast<float>(2 * axis.overlap);
}

// The tiles under one position of an axis: the upper (left) one, the position's place in it, and
// what it and the next one count. In the next one the place is smaller by a step.
struct AxisSources {
  int ways, tile, local;
  float share[2];
};

__device__ __forceinline__ AxisSources sources_along(const Tiling& tiling, const TileAxis& axis,
                                                     int position) {
  const int step = axis.step(), place = position + axis.border;
  // The last tile that covers this position.
  const int last = axis.tiles == 1 ? 0 : min(place / step, axis.tiles - 1);
  const int local = place - last * step;
  const bool both = last > 0 && local < axis.overlap;
  if (!both) return {1, last, local, {1.0f, 0.0f}};
  if (!tiling.is(TileRule::crop)) {
    const float upper = share_of(tiling, axis, 0, local), lower = share_of(tiling, axis, 1, local);
    return {2, last - 1, local + step, {upper, lower}};
  }
  const bool before = local < (axis.overlap + 1) / 2;
  return {1, last - before, before ? local + step : local, {1.0f, 0.0f}};
}

}  // namespace flashvl::cuda
