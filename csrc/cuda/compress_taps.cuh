// What the elements of a compressed token are made of: one token each (shuffle), or a weighted sum
// of a block, a bin or four neighbours (pooling).
#pragma once

#include "token_canvas.cuh"

namespace flashvl::cuda {

enum class Pooling : int { none, average, adaptive, bilinear };

// How the elements of an output lie: part by part; in Unfold's order, put right in registers by
// four lanes; in Unfold's order, written one by one.
constexpr int kInOrder = 0, kInterleaved = 1, kScattered = 2;

// y is contiguous rows of `columns`, but for the order. A row is an output token, or with the norm
// before the shuffle one of the factor^2 tokens that make up an output.
template <class T>
struct CompressTokensArgs {
  Global<const T> x;
  Global<const T> weight;  // null: no norm
  Global<const T> bias;    // null: RMSNorm
  Global<T> y;
  TokenCanvas canvas;
  int64_t columns;
  int64_t rows_a_token;
  int channels;  // of x
  int factor;    // of shuffle and average
  int out_rows, out_cols;
  int transpose;  // tokens column by column
  int pooling, order;
  float eps;

  __device__ __forceinline__ int height() const { return canvas.tiling.down.length; }
  __device__ __forceinline__ int width() const { return canvas.tiling.across.length; }
};

// An output token: its image, its place in the compressed grid, and the first of its parts.
struct OutputPlace {
  int64_t image;
  int row, col, part;
};

template <class T>
__device__ __forceinline__ OutputPlace output_place(const CompressTokensArgs<T>& args,
                                                    int64_t row) {
  const int64_t number = row / args.rows_a_token;
  const int64_t tokens = static_cast<int64_t>(args.out_rows) * args.out_cols;
  const int64_t image = number / tokens, token = number - image * tokens;
  const int side = args.transpose ? args.out_rows : args.out_cols;
  const int outer = static_cast<int>(token / side), inner = static_cast<int>(token % side);
  const int part = static_cast<int>(row - number * args.rows_a_token);
  if (args.transpose) return {image, inner, outer, part};
  return {image, outer, inner, part};
}

// Whether part `part` of an output lies on the canvas; else it is padding.
template <class T>
__device__ __forceinline__ bool part_inside(const CompressTokensArgs<T>& args,
                                            const OutputPlace& at, int part) {
  return at.row * args.factor + part / args.factor < args.height() &&
         at.col * args.factor + part % args.factor < args.width();
}

// Elements [c, c + kVec) of a shuffled token: channels of one of its parts.
template <int kVec, class T>
__device__ __forceinline__ Vec<T, kVec> moved_at(const CompressTokensArgs<T>& args,
                                                 const OutputPlace& at, int c) {
  int part = c / args.channels, column = c - part * args.channels;
  if (args.order == kInterleaved) {  // of four vectors in a row, each is of another part
    const int vector = c / kVec;
    part = vector % 4;
    column = vector / 4 * kVec;
  }
  part += at.part;
  Vec<T, kVec> values{};
  const int row = at.row * args.factor + part / args.factor;
  const int col = at.col * args.factor + part % args.factor;
  if (row >= args.height() || col >= args.width()) return values;
  const PositionSources from = sources_at(args.canvas, at.image, row, col);
  if (!args.canvas.tiling.blended) return plain_at<kVec>(args.x, from, column);
  const Vec<float, kVec> sum = blended_at<kVec>(args.x, args.canvas, from, column);
#pragma unroll
  for (int i = 0; i < kVec; ++i) values[i] = from_float<T>(sum[i]);
  return values;
}

// The tokens that an output adds up along one axis: `count` from `first` on, the last one again
// where the canvas ends. second: the weight of the second of two, else all weigh 1.
struct Span {
  int first, count;
  float second;
};

template <class T>
__device__ __forceinline__ Span span_of(const CompressTokensArgs<T>& args, int at, int size,
                                        int out) {
  if (args.pooling == static_cast<int>(Pooling::average)) {
    return {at * args.factor, args.factor, 1.0f};
  }
  if (args.pooling == static_cast<int>(Pooling::adaptive)) {
    const int64_t wide = static_cast<int64_t>(at) * size;
    const int first = static_cast<int>(wide / out);
    return {first, static_cast<int>(ceil_div(wide + size, out)) - first, 1.0f};
  }
  // Half-pixel centres, clamped at the edges, as torch.nn.functional.interpolate does.
  const float scale = static_cast<float>(size) / static_cast<float>(out);
  const float centre = fmaxf(fmaf(static_cast<float>(at) + 0.5f, scale, -0.5f), 0.0f);
  const int first = min(static_cast<int>(centre), size - 1);
  return {first, 2, centre - static_cast<float>(first)};
}

// Channels [c, c + kVec) of up to kAtOnce positions of one row, weighed and added up.
template <int kVec, int kAtOnce, class T, class W>
__device__ __forceinline__ void add_positions(const CompressTokensArgs<T>& args, int64_t image,
                                              int row, const Span& across, int from, int64_t c,
                                              W weight, Vec<float, kVec>& sum) {
  Vec<T, kVec> part[kAtOnce];
#pragma unroll
  for (int k = 0; k < kAtOnce; ++k) {
    const int col = min(across.first + from + k, args.width() - 1);
    part[k] = {};
    if (from + k < across.count) {
      part[k] = plain_at<kVec>(args.x, sources_at(args.canvas, image, row, col), c);
    }
  }
#pragma unroll
  for (int k = 0; k < kAtOnce; ++k) {
#pragma unroll
    for (int i = 0; i < kVec; ++i) sum[i] = fmaf(to_float(part[k][i]), weight(from + k), sum[i]);
  }
}

// Elements [c, c + kVec) of a pooled token. A row of a bin after the other: short sums err least.
template <int kVec, class T>
__device__ __forceinline__ Vec<T, kVec> pooled_at(const CompressTokensArgs<T>& args,
                                                  const OutputPlace& at, int64_t c) {
  constexpr int kAtOnce = 4;  // loads under way
  const bool weighted = args.pooling == static_cast<int>(Pooling::bilinear);
  const Span down = span_of(args, at.row, args.height(), args.out_rows);
  const Span across = span_of(args, at.col, args.width(), args.out_cols);
  const auto weight_of = [&](const Span& span, int k) {
    return weighted && k == 0 ? 1.0f - span.second : span.second;
  };
  const auto weight = [&](int k) { return weight_of(across, k); };
  Vec<float, kVec> total{};
#pragma unroll 1
  for (int a = 0; a < down.count; ++a) {
    const int row = min(down.first + a, args.height() - 1);
    Vec<float, kVec> sum{};
    if (!args.canvas.tiling.blended) {
#pragma unroll 1
      for (int b = 0; b < across.count; b += kAtOnce) {
        add_positions<kVec, kAtOnce>(args, at.image, row, across, b, c, weight, sum);
      }
    } else {
#pragma unroll 1
      for (int b = 0; b < across.count; ++b) {
        const int col = min(across.first + b, args.width() - 1);
        const PositionSources from = sources_at(args.canvas, at.image, row, col);
        const Vec<float, kVec> one = blended_at<kVec>(args.x, args.canvas, from, c);
#pragma unroll
        for (int i = 0; i < kVec; ++i) sum[i] = fmaf(one[i], weight(b), sum[i]);
      }
    }
#pragma unroll
    for (int i = 0; i < kVec; ++i) total[i] = fmaf(sum[i], weight_of(down, a), total[i]);
  }
  const float positions =
      weighted ? 1.0f : static_cast<float>(down.count) * static_cast<float>(across.count);
  Vec<T, kVec> values;
#pragma unroll
  for (int i = 0; i < kVec; ++i) values[i] = from_float<T>(total[i] / positions);
  return values;
}

}  // namespace flashvl::cuda
