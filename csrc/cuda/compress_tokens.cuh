// Vision tokens compressed, from tiles or a stitched canvas, with their norm, in one pass.
//
// Pixel shuffle is space to depth (Shi et al., arXiv 1609.05158, backwards); "none" is the shuffle
// with factor 1. Bound by bytes: at most 10 FLOPs an element. A block makes one output token: its
// vectors are gathered straight from the tiles (the canvas never exists in memory), stay in
// registers while their norm is worked out, and are written once, all in 16-byte accesses. Pooling
// and blending are summed in fp32 and rounded once, before the norm.
#pragma once

#include "compress_taps.cuh"
#include "layer_norm.cuh"
#include "rms_norm.cuh"

namespace flashvl::cuda {

// At most; and blocks of that many a multiprocessor holds at least. Registers admit four of 192, in
// which 4608 elements are three loads of 16 bytes a thread under way. A sum of several tokens has
// four loads a thread under way, and takes its registers.
constexpr int kCompressThreads = 384;
template <bool kPool>
constexpr int kCompressBlocks = kPool ? 1 : 2;
// Vectors a thread holds at most: 9216 elements of 16 bits, 3072 where each is a sum of several.
template <bool kPool>
constexpr int kCompressHeld = kPool ? 1 : 3;

// Four lanes hold the same columns of a block's four tokens; they trade 32-bit words, so that each
// ends with neighbouring channels in torch.nn.Unfold's order, where the token runs fastest.
template <class T, int kVec>
__device__ __forceinline__ Vec<T, kVec> interleaved(const Vec<T, kVec>& mine) {
  static_assert(sizeof(mine) == 16);
  constexpr int kEach = 4 / sizeof(T);  // columns a word
  Vec<T, kVec> y;
  const int self = lane() % 4;
#pragma unroll
  for (int by = 0; by < 4; ++by) {
    const int other = self ^ by;
    Vec<T, kEach> word{};
#pragma unroll
    for (int w = 0; w < 4; ++w) {  // registers have no index: pick by comparison
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        if (w == other) word[i] = mine[w * kEach + i];
      }
    }
    const auto got = bits_as<Vec<T, kEach>>(shuffle_xor(bits_as<uint32_t>(word), by));
#pragma unroll
    for (int from = 0; from < 4; ++from) {
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        if (from == other) y[i * 4 + from] = got[i];
      }
    }
  }
  return y;
}

// A row of the output in the making: where its elements come from and go to.
template <class T, int kVec, bool kPool>
struct CompressedRow {
  const CompressTokensArgs<T>& args;
  OutputPlace place;
  int64_t y_first;
  bool normed;

  __device__ __forceinline__ CompressedRow(const CompressTokensArgs<T>& all, int64_t row)
      : args(all), place(output_place(all, row)) {
    const int64_t token = row / args.rows_a_token;
    const int64_t part_step = args.order == kInOrder ? args.channels : 1;
    y_first = token * args.columns * args.rows_a_token + place.part * part_step;
    // Padding comes after a norm of single tokens.
    const bool inside = args.rows_a_token == 1 || part_inside(args, place, place.part);
    normed = static_cast<bool>(args.weight) && inside;
  }

  // Rounded to T, not yet normalised.
  __device__ __forceinline__ Vec<T, kVec> at(int64_t c) const {
    if constexpr (kPool) {
      return pooled_at<kVec>(args, place, c);
    } else {
      return moved_at<kVec>(args, place, static_cast<int>(c));
    }
  }

  // Where element c goes, counted from y_first: in Unfold's order, part by part in registers.
  __device__ __forceinline__ int64_t channel(int64_t c) const {
    const int part = static_cast<int>(c) / args.channels;
    return (c - static_cast<int64_t>(part) * args.channels) * args.factor * args.factor + part;
  }

  __device__ __forceinline__ void store(int64_t c, const Vec<T, kVec>& values) const {
    if (args.order != kScattered) {
      args.y.store(y_first + c, values);
      return;
    }
#pragma unroll
    for (int i = 0; i < kVec; ++i) args.y.store(y_first + channel(c + i), values[i]);
  }

  __device__ __forceinline__ Vec<T, kVec> mapped(const Global<const T>& from, int64_t c) const {
    if (args.order != kScattered || args.rows_a_token > 1) return from.template load<kVec>(c);
    Vec<T, kVec> values;
#pragma unroll
    for (int i = 0; i < kVec; ++i) values[i] = from.load(channel(c + i));
    return values;
  }

  // Normalises what `each(visit)` visits, twice or thrice, and stores it.
  template <class Sum, class Each>
  __device__ __forceinline__ void normalise(RowSum<true>& row_sum, Sum sum, Each each) const {
    const float columns = static_cast<float>(args.columns);
    if (!args.bias) {
      const float squares = row_sum(sum([](float v) { return v * v; }));
      const float scale = rms_scale(squares, args.columns, args.eps);
      each([&](int64_t c, const Vec<T, kVec>& v) {
        store(c, rms_scaled(v, mapped(args.weight, c), scale));
      });
      return;
    }
    const float mean = row_sum(sum([](float v) { return v; })) / columns;
    const float squares = row_sum(sum([&](float v) { return (v - mean) * (v - mean); }));
    const float scale = layer_scale(squares, columns, args.eps);
    each([&](int64_t c, const Vec<T, kVec>& v) {
      store(c, layer_mapped(v, mapped(args.weight, c), mapped(args.bias, c), mean, scale));
    });
  }
};

// A row of at most kCompressHeld vectors a thread, which stays in registers.
template <class T, int kVec, bool kPool>
__global__ void __launch_bounds__(kCompressThreads, kCompressBlocks<kPool>)
    compress_tokens_kernel(CompressTokensArgs<T> args) {
  RowSum<true> row_sum;
  HeldRow<T, kVec, kCompressHeld<kPool>> held{};
  const CompressedRow<T, kVec, kPool> out(args, blockIdx.x);
  held.each(args.columns, [&](int h, int64_t c) { held.at[h] = out.at(c); });
  if (!kPool && args.order == kInterleaved) {
#pragma unroll
    for (int h = 0; h < kCompressHeld<kPool>; ++h) held.at[h] = interleaved(held.at[h]);
  }
  const auto each = [&](auto visit) {
    held.each(args.columns, [&](int h, int64_t c) { visit(c, held.at[h]); });
  };
  if (out.normed) {
    out.normalise(row_sum, [&](auto f) { return held.sum(args.columns, f); }, each);
  } else {
    each([&](int64_t c, const Vec<T, kVec>& v) { out.store(c, v); });
  }
}

// A longer row, or one of odd addresses: gathered again in each pass, from the L2 cache.
template <class T, int kVec, bool kPool>
__global__ void __launch_bounds__(kCompressThreads, 1)
    compress_tokens_long_kernel(CompressTokensArgs<T> args) {
  RowSum<true> row_sum;
  const CompressedRow<T, kVec, kPool> out(args, blockIdx.x);
  const auto each = [&](auto visit) {
#pragma unroll 1
    for (int64_t c = threadIdx.x * kVec; c < args.columns; c += blockDim.x * kVec) {
      visit(c, out.at(c));
    }
  };
  const auto sum = [&](auto f) {
    float total = 0.0f;
    each([&](int64_t, const Vec<T, kVec>& v) {
#pragma unroll
      for (int i = 0; i < kVec; ++i) total += f(to_float(v[i]));
    });
    return total;
  };
  if (out.normed) {
    out.normalise(row_sum, sum, each);
  } else {
    each([&](int64_t c, const Vec<T, kVec>& v) { out.store(c, v); });
  }
}

}  // namespace flashvl::cuda
