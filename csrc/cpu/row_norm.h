// RMSNorm or LayerNorm of one row that lies in the first-level cache: the norm that other ops fuse.
//
// Rounding as in flashvl_kernels/norm.py: RMSNorm rounds the normalised value before the weight
// multiplies it, LayerNorm rounds once.
#pragma once

#include "vec.h"

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

// bias null: RMSNorm.
template <class T>
struct RowNorm {
  const T* weight;
  const T* bias;
  float eps;
};

// The sum over the row of term(lanes), with four running sums: one would wait for each addition.
// `term` must give 0 past the end of the row, where its second argument is the lanes that count.
template <class T, class Term>
inline float sum_row(const T* row, int64_t columns, Term term) {
  F32 sums[4] = {zero(), zero(), zero(), zero()};
  int64_t c = 0;
  for (; c + 4 * kLanes <= columns; c += 4 * kLanes) {
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) sums[k] = term(sums[k], load(row + c + k * kLanes));
  }
  for (; c + kLanes <= columns; c += kLanes) sums[0] = term(sums[0], load(row + c));
  return reduce_add((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

// The elements after the last whole vector, one by one: `f(first)` for their first index.
inline int64_t whole_lanes(int64_t columns) { return columns / kLanes * kLanes; }

template <class T>
inline float mean_of(const T* row, int64_t columns) {
  float sum = sum_row(row, columns, [](F32 total, F32 value) { return total + value; });
  const int64_t c = whole_lanes(columns);
  if (c < columns) sum += reduce_add(load_some(row + c, columns - c));
  return sum / static_cast<float>(columns);
}

// Mean of the squared deviations from `mean`.
template <class T>
inline float variance_of(const T* row, int64_t columns, float mean) {
  const F32 centre = splat(mean);
  float sum = sum_row(row, columns, [centre](F32 total, F32 value) {
    const F32 away = value - centre;
    return fma(away, away, total);
  });
  const int64_t c = whole_lanes(columns), left = columns - c;
  if (left > 0) {
    // The lanes past the end are loaded as zeros: give them the mean instead.
    float last[kLanes];
    store(last, load_some(row + c, left));
    for (int64_t i = left; i < kLanes; ++i) last[i] = mean;
    const F32 away = load(last) - centre;
    sum += reduce_add(away * away);
  }
  return sum / static_cast<float>(columns);
}

// to may be the row itself.
template <class T>
inline void rms_normalise(const T* row, T* to, int64_t columns, const RowNorm<T>& norm) {
  const F32 scale = splat(1.0f / __builtin_sqrtf(variance_of(row, columns, 0.0f) + norm.eps));
  int64_t c = 0;
  for (; c + kLanes <= columns; c += kLanes) {
    store(to + c, round_to<T>(load(row + c) * scale) * load(norm.weight + c));
  }
  if (c < columns) {
    const int64_t n = columns - c;
    const F32 value = round_to<T>(load_some(row + c, n) * scale);
    store_some(to + c, value * load_some(norm.weight + c, n), n);
  }
}

template <class T>
inline void layer_normalise(const T* row, T* to, int64_t columns, const RowNorm<T>& norm) {
  const float mean = mean_of(row, columns);
  const F32 centre = splat(mean);
  const F32 scale = splat(1.0f / __builtin_sqrtf(variance_of(row, columns, mean) + norm.eps));
  int64_t c = 0;
  for (; c + kLanes <= columns; c += kLanes) {
    const F32 value = (load(row + c) - centre) * scale;
    store(to + c, fma(value, load(norm.weight + c), load(norm.bias + c)));
  }
  if (c < columns) {
    const int64_t n = columns - c;
    const F32 value = (load_some(row + c, n) - centre) * scale;
    store_some(to + c, fma(value, load_some(norm.weight + c, n), load_some(norm.bias + c, n)), n);
  }
}

template <class T>
inline void normalise(const T* row, T* to, int64_t columns, const RowNorm<T>& norm) {
  if (norm.bias == nullptr) return rms_normalise(row, to, columns, norm);
  layer_normalise(row, to, columns, norm);
}

}  // namespace
}  // namespace flashvl::cpu::FLASHVL_LEVEL
