// RMSNorm or LayerNorm of a row while it is packed for a product; see flashvl_kernels/norm.py for
// where each rounds.
#pragma once

#include "../row_norm.h"

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

// One row's values after the norm, rounded to T. weight null: the row itself; bias null: RMSNorm.
template <class T>
class NormalisedRow {
 public:
  NormalisedRow(const T* x, int64_t columns, const T* weight, const T* bias, float eps)
      : x_(x), weight_(weight), bias_(bias), centre_(zero()), scale_(zero()), shift_(zero()) {
    if (weight == nullptr) return;
    const RowMoments row = moments_of(&x, 1, columns, bias != nullptr, eps);
    centre_ = splat(row.centre);
    scale_ = splat(row.scale);
    shift_ = splat(row.shift);
  }

  // Columns [c, c + n), n <= kLanes; the lanes from n on are zero.
  F32 at(int64_t c, int64_t n) const {
    const F32 x = load_up_to(x_ + c, n);
    if (weight_ == nullptr) return x;
    const F32 weight = load_up_to(weight_ + c, n);
    if (bias_ == nullptr) return round_to<T>(round_to<T>(x * scale_) * weight);
    const F32 normal = fma(x - centre_, scale_, shift_);
    return round_to<T>(fma(normal, weight, load_up_to(bias_ + c, n)));
  }

 private:
  const T* x_;
  const T* weight_;
  const T* bias_;
  F32 centre_, scale_, shift_;
};

}  // namespace
}  // namespace flashvl::cpu::FLASHVL_LEVEL
