// RMSNorm or LayerNorm of a row while it is packed for a product; see flashvl_kernels/norm.py for
// where each rounds.
#pragma once

#include "../vec.h"

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

// n < kLanes only at a row's end.
template <class T>
inline F32 load_up_to(const T* p, int64_t n) {
  return n < kLanes ? load_some(p, n) : load(p);
}

template <class T>
inline void store_up_to(T* p, F32 a, int64_t n) {
  if (n < kLanes) {
    store_some(p, a, n);
  } else {
    store(p, a);
  }
}

// The sum of (x - mean)^power over a row, in four running sums: a fused multiply-add takes 4 cycles
// and would wait on the one before it.
template <int power, class T>
float sum_of_powers(const T* x, int64_t columns, F32 mean) {
  F32 sums[4] = {zero(), zero(), zero(), zero()};
  int64_t c = 0;
  const auto add = [&](F32 x, F32 sum) { return power == 1 ? sum + x : fma(x, x, sum); };
  for (; c + 4 * kLanes <= columns; c += 4 * kLanes) {
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) sums[k] = add(load(x + c + k * kLanes) - mean, sums[k]);
  }
  for (; c + kLanes <= columns; c += kLanes) sums[0] = add(load(x + c) - mean, sums[0]);
  float rest = 0.0f;
  if (c < columns) {
    const int64_t n = columns - c;
    float last[kLanes];
    store(last, add(load_some(x + c, n) - mean, zero()));
    for (int64_t i = 0; i < n; ++i) rest += last[i];
  }
  return reduce_add((sums[0] + sums[1]) + (sums[2] + sums[3])) + rest;
}

// One row's values after the norm, rounded to T. weight null: the row itself; bias null: RMSNorm.
template <class T>
class NormalisedRow {
 public:
  NormalisedRow(const T* x, int64_t columns, const T* weight, const T* bias, float eps)
      : x_(x), weight_(weight), bias_(bias), mean_(zero()), scale_(zero()), shift_(zero()) {
    if (weight == nullptr) return;
    const double count = static_cast<double>(columns);
    double off = 0.0;  // by how much the rounded mean is wrong, as layer_norm.cpp explains
    if (bias != nullptr) {
      mean_ = splat(static_cast<float>(sum_of_powers<1>(x, columns, zero()) / count));
      off = sum_of_powers<1>(x, columns, mean_) / count;
    }
    const double square = sum_of_powers<2>(x, columns, mean_) / count - off * off;
    const double rstd = 1.0 / __builtin_sqrt(square + eps);
    scale_ = splat(static_cast<float>(rstd));
    shift_ = splat(static_cast<float>(-off * rstd));
  }

  // Columns [c, c + n), n <= kLanes; the lanes from n on are zero.
  F32 at(int64_t c, int64_t n) const {
    const F32 x = load_up_to(x_ + c, n);
    if (weight_ == nullptr) return x;
    const F32 weight = load_up_to(weight_ + c, n);
    if (bias_ == nullptr) return round_to<T>(round_to<T>(x * scale_) * weight);
    const F32 normal = fma(x - mean_, scale_, shift_);
    return round_to<T>(fma(normal, weight, load_up_to(bias_ + c, n)));
  }

 private:
  const T* x_;
  const T* weight_;
  const T* bias_;
  F32 mean_, scale_, shift_;
};

}  // namespace
}  // namespace flashvl::cpu::FLASHVL_LEVEL
