// Tokens as a kernel reads them: those of an image, or the canvas stitched from overlapping tiles.
//
// The rules are those of flashvl_kernels/tiles.py, worked out where they are used: at most one
// integer division an axis costs less than a table to read. The two axes are alike; their shares
// multiply.
#pragma once

#include "memory.cuh"

namespace flashvl::cuda {

enum class TileRule : int { crop, mean, linear };

struct CanvasAxis {
  int tiles, tile, overlap, border;
};

// Strides count elements; a token's channels are neighbours. Tokens that were never cut are one
// tile an image, whose side is the length of a row.
struct TokenCanvas {
  CanvasAxis down, across;
  int rule;     // TileRule
  int blended;  // a position may have two sources an axis
  int64_t tile_stride, token_stride;
};

// Where a position comes from along one axis. A share of 0 stands for nowhere: to be masked, not
// multiplied, or an infinite feature turns into NaN.
struct AxisSource {
  int tile, local;
  float share;
};

// Source `way` of a position: way 0 is the tile that alone covers it, or the upper (left) one of
// two; way 1 the lower one.
__device__ __forceinline__ AxisSource axis_source(const CanvasAxis& axis, int rule, int position,
                                                  int way) {
  const int step = axis.tile - axis.overlap, full = position + axis.border;
  // The last tile that covers this position.
  const int last = axis.tiles == 1 ? 0 : min(full / step, axis.tiles - 1);
  const int local = full - last * step;
  const bool shared = last > 0 && local < axis.overlap;
  bool before = shared && way == 0;
  float share = shared || way == 0 ? 1.0f : 0.0f;
  if (rule == static_cast<int>(TileRule::crop)) {
    before = shared && local < (axis.overlap + 1) / 2;
    share = way == 0 ? 1.0f : 0.0f;
  } else if (shared && rule == static_cast<int>(TileRule::mean)) {
    share = 0.5f;
  } else if (shared) {
    // Distances of the patch's centre in half patches: whole numbers, one rounding.
    const int distance = before ? 2 * (axis.overlap - local) - 1 : 2 * local + 1;
    share = static_cast<float>(distance) / static_cast<float>(2 * axis.overlap);
  }
  return {before ? last - 1 : last, before ? local + step : local, share};
}

// The element that the token at these sources begins with.
__device__ __forceinline__ int64_t token_offset(const TokenCanvas& canvas, int64_t image,
                                                const AxisSource& down, const AxisSource& across) {
  const int64_t tile = (image * canvas.down.tiles + down.tile) * canvas.across.tiles + across.tile;
  const int64_t token = static_cast<int64_t>(down.local) * canvas.across.tile + across.local;
  return tile * canvas.tile_stride + token * canvas.token_stride;
}

// Channels [c, c + kVec) of a position with several sources, in fp32: added up from the upper left,
// two loads under way. Four would take 16 registers more, and most positions have one or two.
template <int kVec, class T>
__device__ __forceinline__ Vec<float, kVec> blended_at(const Global<const T>& x,
                                                       const TokenCanvas& canvas, int64_t image,
                                                       int row, int col, int64_t c) {
  const AxisSource across[2] = {axis_source(canvas.across, canvas.rule, col, 0),
                                axis_source(canvas.across, canvas.rule, col, 1)};
  Vec<float, kVec> sum{};
#pragma unroll 1
  for (int way = 0; way < 2; ++way) {
    const AxisSource down = axis_source(canvas.down, canvas.rule, row, way);
    if (down.share == 0.0f) break;
    Vec<T, kVec> part[2];
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      part[s] = {};
      if (across[s].share > 0.0f) {
        part[s] = x.template load_once<kVec>(token_offset(canvas, image, down, across[s]) + c);
      }
    }
#pragma unroll
    for (int s = 0; s < 2; ++s) {
#pragma unroll
      for (int i = 0; i < kVec; ++i) {
        sum[i] = fmaf(to_float(part[s][i]), down.share * across[s].share, sum[i]);
      }
    }
  }
  return sum;
}

// The same where each position has one source: a plain load.
template <int kVec, class T>
__device__ __forceinline__ Vec<T, kVec> plain_at(const Global<const T>& x,
                                                 const TokenCanvas& canvas, int64_t image, int row,
                                                 int col, int64_t c) {
  const AxisSource down = axis_source(canvas.down, canvas.rule, row, 0);
  const AxisSource across = axis_source(canvas.across, canvas.rule, col, 0);
  return x.template load_once<kVec>(token_offset(canvas, image, down, across) + c);
}

}  // namespace flashvl::cuda
