// What the matrix products share: their arguments, the columns of a tile, and what follows the
// sums.
//
// A product is y = activation(n w^T + bias) + residual, n the rows of x or their norms. Every
// kernel leaves the sums of a tile in shared memory as fp32 [rows, columns]; finish_tile() makes
// results of them. Where the sum over a row of w is split between blocks, each leaves its part in
// global memory and the last one to arrive adds them from the first to the last: the same bits
// every time (the fix-up of stream-K, arXiv 2301.03598, with equal parts).
//
// A gated product (SwiGLU, Shazeer, arXiv 2002.05202) has w of 2 * units rows, gates first. Its
// tiles take gates and ups by turns, eight columns of each, so that a tile holds both of a unit.
#pragma once

#include "arrival.cuh"
#include "rows.cuh"

namespace flashvl::cuda {

enum Activation : int64_t { kIdentity, kGelu, kGeluTanh, kSilu, kGated };

// Rows of x and of w start at multiples of 16 bytes; what follows their last element, up to the
// next such multiple, is zero in x and finite in w.
template <class T>
struct ProductArgs {
  Global<const T> x;
  Global<const uint32_t> w;     // of any format, in words of 4 bytes
  Global<const float> scale;    // int8: [rows of w]; int4: [rows of w, groups]; else null
  Global<const T> norm_weight;  // null: no norm; padded like a row of x
  Global<const T> norm_bias;    // null: RMSNorm
  Global<const T> bias;         // null: none
  Global<const T> residual;     // null: none
  Global<T> y;                  // [rows, units]
  Global<float> partial;        // [tiles, splits, rows of a tile, columns of a tile]
  Global<int> counters;         // [tiles]
  Rows x_rows, residual_rows;
  int64_t rows, units;
  int64_t y_stride;      // between rows of y
  int64_t columns;       // of x that count
  int64_t padded;        // columns of x that exist, a whole number of 16 bytes
  int64_t w_stride;      // words between rows of w
  int64_t w_words;       // words of a row, a multiple of 4
  int64_t splits, part;  // of the sum; columns of each but the last
  int64_t activation;
  int64_t wide;  // four elements of y, bias and residual are one aligned access
  float eps;
};

// The row of w behind column `column` of a product, or -1 where there is none.
template <class T>
__device__ __forceinline__ int64_t weight_row(const ProductArgs<T>& args, int64_t column) {
  if (args.activation != kGated) return column < args.units ? column : -1;
  const int64_t unit = column / 16 * 8 + column % 8;
  if (unit >= args.units) return -1;
  return column % 16 < 8 ? unit : args.units + unit;
}

__device__ __forceinline__ float silu(float x) { return x / (1.0f + expf(-x)); }

// tanh is written through the sigmoid, which loses nothing where 1 + tanh would cancel.
__device__ __forceinline__ float activated(float x, int64_t activation) {
  if (activation == kGelu) return 0.5f * x * (1.0f + erff(x * 0.7071067811865476f));
  if (activation == kGeluTanh) {
    return x / (1.0f + expf(-1.5957691216057308f * (x + 0.044715f * x * x * x)));
  }
  return activation == kSilu ? silu(x) : x;
}

// The place of a block's tile. Row tiles run fastest, 16 at most, so that neighbours in time share
// their rows of w, and the x they read between two of those stays in the L2 cache.
struct TilePlace {
  int64_t first_row, first_column;
  int64_t tile;  // its number
};

template <int kRows, int kColumns, class T>
__device__ __forceinline__ TilePlace tile_place(const ProductArgs<T>& args) {
  const int64_t across =
      ceil_div(args.activation == kGated ? ceil_div(args.units, 8) * 16 : args.units, kColumns);
  const int64_t down = ceil_div(args.rows, kRows), tile = blockIdx.x;
  const int64_t group = tile / (16 * across), within = tile - group * 16 * across;
  const int64_t height = min(down - group * 16, static_cast<int64_t>(16));
  return {(group * 16 + within % height) * kRows, within / height * kColumns, tile};
}

// The results of four units from their sums, rounded where the unfused modules round.
template <class T>
__device__ __forceinline__ void finish_four(const ProductArgs<T>& args, int64_t row, int64_t unit,
                                            Vec<float, 4> sums, const Vec<float, 4>& ups) {
  const int64_t at = row * args.y_stride + unit;
  const int64_t residual_at = args.residual ? args.residual_rows.offset(row) + unit : 0;
  const int count = static_cast<int>(min(args.units - unit, static_cast<int64_t>(4)));
  const auto four = [&](Global<const T> from, int64_t first) {
    if (args.wide) return from.template load<4>(first);
    Vec<T, 4> values{};
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if (e < count) values[e] = from.load(first + e);
    }
    return values;
  };
  Vec<T, 4> shift{}, more{}, y;
  if (args.bias) shift = four(args.bias, unit);
  if (args.residual) more = four(args.residual, residual_at);
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    float value = sums[e];
    if (args.bias) value += to_float(shift[e]);
    value = round_to<T>(value);
    if (args.activation == kGated) {
      value = round_to<T>(round_to<T>(silu(value)) * round_to<T>(ups[e]));
    } else if (args.activation != kIdentity) {
      value = round_to<T>(activated(value, args.activation));
    }
    if (args.residual) value += to_float(more[e]);
    y[e] = from_float<T>(value);
  }
  if (args.wide) {
    args.y.store(at, y);
    return;
  }
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    if (e < count) args.y.store(at + e, y[e]);
  }
}

// Results of a tile whose sums lie in `tile`, [kRows, kStride], by all threads of the block, which
// have met a barrier since they wrote it.
template <int kRows, int kColumns, int kStride, class T>
__device__ __forceinline__ void finish_tile(const ProductArgs<T>& args, const TilePlace& place,
                                            Shared<const float> tile) {
  const int rows = static_cast<int>(min(args.rows - place.first_row, static_cast<int64_t>(kRows)));
  const int splits = static_cast<int>(args.splits), threads = blockDim.x;
  const int64_t size = kRows * kColumns;
  const Global<float> partial = args.partial + place.tile * splits * size;
  if (splits > 1) {
    for (int i = threadIdx.x; i < rows * (kColumns / 4); i += threads) {
      const int row = i / (kColumns / 4), column = i % (kColumns / 4) * 4;
      partial.store(blockIdx.y * size + row * kColumns + column,
                    tile.template load<4>(row * kStride + column));
    }
    if (!last_to_arrive(args.counters + place.tile, splits)) return;
  }
  const auto sums = [&](int row, int column) {
    if (splits == 1) return tile.template load<4>(row * kStride + column);
    Vec<float, 4> total{};
    // Four loads under way: the last block is alone, and waits for each.
#pragma unroll 4
    for (int s = 0; s < splits; ++s) {
      const Vec<float, 4> more = partial.template load<4>(s * size + row * kColumns + column);
#pragma unroll
      for (int e = 0; e < 4; ++e) total[e] += more[e];
    }
    return total;
  };
  const bool gated = args.activation == kGated;
  const int width = gated ? kColumns / 2 : kColumns;
  const int64_t first_unit = gated ? place.first_column / 2 : place.first_column;
#pragma unroll 1
  for (int i = threadIdx.x; i < rows * (width / 4); i += threads) {
    const int row = i / (width / 4), unit = i % (width / 4) * 4;
    if (first_unit + unit >= args.units) continue;
    const int column = gated ? unit / 8 * 16 + unit % 8 : unit;
    Vec<float, 4> up{};
    if (gated) up = sums(row, column + 8);
    finish_four(args, place.first_row + row, first_unit + unit, sums(row, column), up);
  }
}

}  // namespace flashvl::cuda
