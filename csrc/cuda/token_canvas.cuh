// Tokens as a kernel reads them: those of an image, or the canvas stitched from overlapping tiles.
#pragma once

#include "memory.cuh"
#include "tiling.cuh"

namespace flashvl::cuda {

// Strides count elements, between tiles and between the tokens of a tile; channels are neighbours.
// Tokens that were never cut are one tile an image, whose side is the length of a row.
struct TokenCanvas {
  Tiling tiling;
  int64_t tile_stride, token_stride;

  // From a source to the one in the tile below, and in the tile to the right.
  __device__ __forceinline__ int64_t to_lower() const {
    const int64_t tokens = static_cast<int64_t>(tiling.down.step()) * tiling.across.tile;
    return tiling.across.tiles * tile_stride - tokens * token_stride;
  }
  __device__ __forceinline__ int64_t to_right() const {
    return tile_stride - tiling.across.step() * token_stride;
  }
};

// The tokens that a position is made of; offset: of the upper left one.
struct PositionSources {
  AxisSources down, across;
  int64_t offset;

  __device__ __forceinline__ bool several() const { return down.ways * across.ways > 1; }
  __device__ __forceinline__ bool has(int i, int j) const {
    return i < down.ways && j < across.ways;
  }
};

__device__ __forceinline__ PositionSources sources_at(const TokenCanvas& canvas, int64_t image,
                                                      int row, int col) {
  const Tiling& tiling = canvas.tiling;
  const AxisSources down = sources_along(tiling, tiling.down, row);
  const AxisSources across = sources_along(tiling, tiling.across, col);
  const int64_t tile = (image * tiling.down.tiles + down.tile) * tiling.across.tiles + across.tile;
  const int64_t token = static_cast<int64_t>(down.local) * tiling.across.tile + across.local;
  return {down, across, tile * canvas.tile_stride + token * canvas.token_stride};
}

// Channels [c, c + kVec) of a position with several sources, in fp32: all loads under way at once,
// added up from the upper left.
template <int kVec, class T>
__device__ __forceinline__ Vec<float, kVec> blended_at(const Global<const T>& x,
                                                       const TokenCanvas& canvas,
                                                       const PositionSources& from, int64_t c) {
  Vec<T, kVec> part[2][2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      // What is not there is not loaded: infinity times a share of 0 is NaN.
      part[i][j] = {};
      if (from.has(i, j)) {
        const int64_t source = from.offset + i * canvas.to_lower() + j * canvas.to_right();
        part[i][j] = x.template load_once<kVec>(source + c);
      }
    }
  }
  Vec<float, kVec> sum{};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const float share = from.down.share[i] * from.across.share[j];
#pragma unroll
      for (int e = 0; e < kVec; ++e) sum[e] = fmaf(to_float(part[i][j][e]), share, sum[e]);
    }
  }
  return sum;
}

// The same where the position has one source: a plain load.
template <int kVec, class T>
__device__ __forceinline__ Vec<T, kVec> plain_at(const Global<const T>& x,
                                                 const PositionSources& from, int64_t c) {
  return x.template load_once<kVec>(from.offset + c);
}

}  // namespace flashvl::cuda
