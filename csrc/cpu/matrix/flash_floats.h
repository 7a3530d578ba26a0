// The matrix products of flash.h in fp32 fused multiply-adds: every level and dtype.
//
// Both products are C[rows][queries] = A[rows][depth] B[depth][queries] with queries in the lanes:
// scores = K Q^T, outputs = V^T P. An element of A is broadcast to kRows x 2 accumulators' fmas, so
// the bound is the fma units: at AVX-512 16 fmas (8 cycles) for 10 loads (5 cycles).
#pragma once

#include "flash_softmax.h"

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

// Accumulators: kRows x 2 vectors. Scalar has 16 registers of 4 floats, so a vector takes two.
#if defined(FLASHVL_FLASH_AVX512)
constexpr int kFloatRows = 8;
#elif defined(FLASHVL_LEVEL_avx2)
constexpr int kFloatRows = 4;
#else
constexpr int kFloatRows = 2;
#endif

struct FloatMatrix {
  const float* data;
  int64_t row;
  int64_t step;
};

template <int rows>
inline void float_tile(float* c, FloatMatrix a, const float* b, int64_t depth, bool add) {
  F32 sums[rows][2];
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) sums[r][0] = sums[r][1] = zero();
  for (int64_t k = 0; k < depth; ++k) {
    const F32 left = load(b + k * kQueries), right = load(b + k * kQueries + kLanes);
    const float* column = a.data + k * a.step;
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const F32 value = splat(column[r * a.row]);
      sums[r][0] = fma(value, left, sums[r][0]);
      sums[r][1] = fma(value, right, sums[r][1]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) {
      float* out = c + r * kQueries + v * kLanes;
      store(out, add ? load(out) + sums[r][v] : sums[r][v]);
    }
  }
}

// As many tiles of `rows` rows as fit into `left`; what they leave.
template <int rows>
inline int64_t float_tiles(float*& c, FloatMatrix& a, const float* b, int64_t left, int64_t depth,
                           bool add) {
  for (; left >= rows; left -= rows) {
    float_tile<rows>(c, a, b, depth, add);
    c += rows * kQueries;
    a.data += rows * a.row;
  }
  return left;
}

// `vectors`: those of C's columns that hold queries; an odd one brings its neighbour along.
inline void float_product(float* c, FloatMatrix a, const float* b, int64_t rows, int64_t depth,
                          int vectors, bool add) {
  for (int v = 0; v < vectors; v += 2) {
    FloatMatrix part = a;
    float* out = c + v * kLanes;
    const float* in = b + v * kLanes;
    int64_t left = float_tiles<kFloatRows>(out, part, in, rows, depth, add);
    left = float_tiles<4>(out, part, in, left, depth, add);
    left = float_tiles<2>(out, part, in, left, depth, add);
    float_tiles<1>(out, part, in, left, depth, add);
  }
}

// Whether a probability of 13 bits is good enough: where the result is rounded to 8.
template <class T>
constexpr bool kShortExp = false;
template <>
constexpr bool kShortExp<BF16> = true;

template <class T>
class FlashFloats {
 public:
  // Products of a score in one sum. In fp32, 128 in a row erred 1.7 times as much as PyTorch's, and
  // 40 still 1.5 times, where one of 33 keys takes all.
  static constexpr int64_t kDepth = sizeof(T) == sizeof(float) ? 32 : 64;
  static constexpr int64_t kKeys = 128;  // of a block: 16 KB of scores, half the first-level cache
  static constexpr FlashLayout kScores = {kQueries, kLanes};

  template <class Arena>
  FlashFloats(Arena& arena, int64_t head_dim, int64_t longest, int64_t slots)
      : head_dim_(head_dim), size_(longest * head_dim) {
    all_keys_ = keys_ = arena.template take<float>(slots * size_);
    all_values_ = values_ = arena.template take<float>(slots * size_);
    queries_ = arena.template take<float>((head_dim + kLanes) * kQueries);
    scores_ = arena.template take<float>(kKeys * kQueries);
    out_ = arena.template take<float>((head_dim + kLanes) * kQueries);
  }

  void use(int64_t slot) {
    keys_ = all_keys_ + slot * size_;
    values_ = all_values_ + slot * size_;
  }

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
          block[i] = (n == kLanes ? load(row) : load_some(row, n)) * splat(sign);
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
      const FloatMatrix a = {keys_ + first * head_dim_ + d, head_dim_, 1};
      const int64_t depth = head_dim_ - d < kDepth ? head_dim_ - d : kDepth;
      float_product(scores_, a, queries_ + d * kQueries, keys, depth, vectors, d > 0);
    }
    return keys;
  }

  float* scores() { return scores_; }

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
    const FloatMatrix a = {values_ + first * head_dim_, 1, head_dim_};
    float_product(out_, a, scores_, head_dim_, rows, vectors, add);
  }

  float* out() { return out_; }
  FlashLayout out_layout() const { return {kQueries, kLanes}; }

 private:
  void widen_row(const T* from, float* to) {
    for_lanes(head_dim_, [&](int64_t d, int64_t n) {
      if (n == kLanes) return store(to + d, load(from + d));
      store_some(to + d, load_some(from + d, n), n);
    });
  }

  static F32 probability(float* p, int64_t r, F32 factor, F32 top) {
    // Not fused: the largest score's probability must be 1.
    const F32 x = load(p + r * kQueries) * factor - top;
    const F32 y = kShortExp<T> ? exp2_short(x) : exp2_exact(x);
    store(p + r * kQueries, y);
    return y;
  }

  int64_t head_dim_;
  int64_t size_;
  float* all_keys_;
  float* all_values_;
  float* keys_;  // of the slot in use
  float* values_;
  float* queries_;
  float* scores_;
  float* out_;
};

}  // namespace
}  // namespace flashvl::cpu::FLASHVL_LEVEL
