// What flash.h multiplies with in fp32: every level and dtype, but for bf16 where FlashDots or
// FlashPairs is there.
#pragma once

#include "flash_buffers.h"
#include "flash_product.h"

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

// Whether a probability of 13 bits is good enough: where the result is rounded to 8.
template <class T>
constexpr bool kShortExp = false;
template <>
constexpr bool kShortExp<BF16> = true;

template <class T>
class FlashFloats : public FlashBuffers {
 public:
  // Products of a score in one sum. In fp32, 128 in a row erred 1.7 times as much as PyTorch's, and
  // 40 still 1.5 times, where one of 33 keys takes all.
  static constexpr int64_t kDepth = sizeof(T) == sizeof(float) ? 32 : 64;

  template <class Arena>
  FlashFloats(Arena& arena, int64_t head_dim, int64_t longest, int64_t slots)
      : FlashBuffers(arena, slots, longest * head_dim, longest * head_dim, head_dim, head_dim) {}

  // Keys [first, last) of `keys`.
  void pack(const T* k, int64_t k_stride, const T* v, int64_t v_stride, int64_t, int64_t first,
            int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      widen_row(k + i * k_stride, keys_ + i * head_dim_);
      widen_row(v + i * v_stride, values_ + i * head_dim_);
    }
  }

  // `rows`: kQueries pointers. sign: 1 or -1, multiplied in.
  void pack_queries(const T* const* rows, float sign) {
    F32 block[kLanes];
    for (int v = 0; v < kQueryVectors; ++v) {
      for_lanes(head_dim_, [&](int64_t d, int64_t n) {
        for (int i = 0; i < kLanes; ++i) {
          const T* row = rows[v * kLanes + i] + d;
          block[i] = load_up_to(row, n) * splat(sign);
        }
        transpose(block);
        for (int i = 0; i < kLanes; ++i) {
          store(queries_ + (d + i) * kQueries + v * kLanes, block[i]);
        }
      });
    }
  }

  // Scores of keys [first, first + keys); returns how many rows were written.
  int64_t score(int64_t first, int64_t keys, int vectors) {
    for (int64_t d = 0; d < head_dim_; d += kDepth) {
      const FlashMatrix a = {keys_ + first * head_dim_ + d, head_dim_, 1};
      const int64_t depth = head_dim_ - d < kDepth ? head_dim_ - d : kDepth;
      flash_product<Floats>(scores_, a, queries_ + d * kQueries, keys, depth, vectors, d > 0);
    }
    return keys;
  }

  // Scores to probabilities, in place; returns their sums.
  F32 probabilities(int v, int64_t rows, F32 factor, F32 top) {
    float* p = scores_ + v * kLanes;
    F32 sums[2] = {zero(), zero()};
    int64_t r = 0;
    for (; r + 2 <= rows; r += 2) {
#pragma GCC unroll 2
      for (int k = 0; k < 2; ++k) sums[k] = sums[k] + probability(p, r + k, factor, top);
    }
    if (r < rows) sums[0] = sums[0] + probability(p, r, factor, top);
    return sums[0] + sums[1];
  }

  // Adds (or, at first, sets) the values weighed by the probabilities.
  void weigh(int64_t first, int64_t rows, int vectors, bool add) {
    const FlashMatrix a = {values_ + first * head_dim_, 1, head_dim_};
    flash_product<Floats>(out_, a, scores_, head_dim_, rows, vectors, add);
  }

 private:
  void widen_row(const T* from, float* to) {
    for_lanes(head_dim_,
              [&](int64_t d, int64_t n) { store_up_to(to + d, load_up_to(from + d, n), n); });
  }

  static F32 probability(float* p, int64_t r, F32 factor, F32 top) {
    // Not fused: the largest score's probability must be 1.
    const F32 x = load(p + r * kQueries) * factor - top;
    const F32 y = kShortExp<T> ? exp2_short(x) : exp2_exact(x);
    store(p + r * kQueries, y);
    return y;
  }
};

}  // namespace
}  // namespace flashvl::cpu::FLASHVL_LEVEL
