// The online softmax of a block of queries (Milakov and Gimelshein, arXiv 1805.02867), queries in
// the lanes: maxima, sums and rescaling are vertical, and no lane is ever added to another.
//
// Scores are taken to powers of two: scale and log2(e) are one factor. The first block sets the
// maximum that is subtracted; later ones move it only when they exceed it by a factor of 2^kSlack
// (as FlashAttention-4 does), because it is subtracted for range and not for accuracy: a rescaling
// of all outputs is rare.
#pragma once

#include "flash_vectors.h"

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

constexpr int kQueries = 32;  // of a block: two AMX tiles, and the lanes of two AVX-512 registers
constexpr int64_t kPackKeys = 32;  // packed at a time: the depth of a tile
constexpr int kQueryVectors = kQueries / kLanes;

// A [rows, kQueries] array of floats: how far apart rows and vectors of queries lie.
struct FlashLayout {
  int64_t row;
  int64_t vector;
};

// What is known of each query so far; `change` is what the outputs so far have to be multiplied by.
struct FlashState {
  float top[kQueries];
  float sum[kQueries];
  float change[kQueries];
};

constexpr float kSlack = 3.0f;

constexpr float kLowest = -3.4e38f;  // finite: -inf - -inf would be NaN where all scores are -inf

inline void start(FlashState& state) {
  for (int v = 0; v < kQueryVectors; ++v) {
    store(state.top + v * kLanes, splat(kLowest));
    store(state.sum + v * kLanes, zero());
  }
}

// The largest of `rows` scores in each lane; NaN is passed over.
inline F32 highest(const float* scores, int64_t stride, int64_t rows) {
  F32 tops[4] = {splat(kLowest), splat(kLowest), splat(kLowest), splat(kLowest)};
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) {
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) tops[k] = max(load(scores + (r + k) * stride), tops[k]);
  }
  for (; r < rows; ++r) tops[0] = max(load(scores + r * stride), tops[0]);
  return max(max(tops[0], tops[1]), max(tops[2], tops[3]));
}

// Takes the largest new scores, scaled, into vector v of the maxima and adjusts its sums; true
// where some lane moved.
inline bool raise_top(FlashState& state, int v, F32 scores_top) {
  float* top = state.top + v * kLanes;
  const F32 before = load(top);
  const Mask moved = less(before + splat(kSlack), scores_top);
  if (reduce_max(select(moved, splat(1.0f), zero())) == 0.0f) return false;
  const F32 change = select(moved, exp2_exact(before - scores_top), splat(1.0f));
  store(top, select(moved, scores_top, before));
  store(state.change + v * kLanes, change);
  store(state.sum + v * kLanes, load(state.sum + v * kLanes) * change);
  return true;
}

inline void add_to_sum(FlashState& state, int v, F32 sum) {
  store(state.sum + v * kLanes, load(state.sum + v * kLanes) + sum);
}

// Multiplies vector v of an array of outputs by `change`.
inline void rescale(const FlashState& state, int v, float* out, FlashLayout layout, int64_t rows) {
  const F32 change = load(state.change + v * kLanes);
  out += v * layout.vector;
  for (int64_t r = 0; r < rows; ++r) {
    store(out + r * layout.row, load(out + r * layout.row) * change);
  }
}

// Takes out the scores of rows [begin, end) that lie at or past each query's limit.
inline void mask_scores(float* scores, FlashLayout layout, int64_t begin, int64_t end,
                        const float* limits) {
  for (int v = 0; v < kQueryVectors; ++v) {
    const F32 limit = load(limits + v * kLanes);
    for (int64_t r = begin; r < end; ++r) {
      float* row = scores + v * layout.vector + r * layout.row;
      const Mask seen = less(splat(static_cast<float>(r)), limit);
      store(row, select(seen, load(row), splat(-__builtin_inff())));
    }
  }
}

}  // namespace
}  // namespace flashvl::cpu::FLASHVL_LEVEL
