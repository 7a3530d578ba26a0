// Functions on the vectors of vec.h: exp and what activations are made of it.
//
// Largest errors against float64, in units in the last place: exp 1.1, sigmoid and silu 2.4 (silu
// is -0 below -88.7, where e^-x is infinite: 2.7e-37 off); gelu_tanh 1.2e-7 and normal_cdf 1e-7 of
// the larger of |x| and 1. Not exact: silu 100, gelu_tanh 5e-7. tests/build/test_vec_math.py
// measures them at every level.
#pragma once

#include "vec.h"

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

// e^x: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2]; ln 2 is taken off in two parts, the first
// short enough for n times it to be exact. Subnormal results are rounded twice.
inline F32 exp(F32 x) {
  const F32 inside = min(splat(89.0f), max(splat(-104.0f), x));  // NaN stays, as min and max say
  const F32 n = round(inside * splat(1.44269504f));
  const F32 r = fma(n, splat(2.12194440e-4f), fma(n, splat(-0.693359375f), inside));
  F32 p = fma(r, splat(1.3946446124e-3f), splat(8.3691515028e-3f));
  p = fma(p, r, splat(4.1666261852e-2f));
  p = fma(p, r, splat(0.16666516662f));
  p = fma(p, r, splat(0.5f));
  p = fma(p, r * r, r) + splat(1.0f);
  return scale_by_power(p, n);
}

// e^x for results of 16 bits, which do not show its error: less than 1 in 10^5. From x = 88.8 on it
// is infinite, below -86.6 it stays what it is there.
inline F32 quick_exp(F32 x) {
  const F32 t = min(splat(128.0f), max(splat(-125.0f), x * splat(1.44269504f)));
  const F32 n = round(t), f = t - n;
  F32 p = fma(f, splat(9.582852945e-3f), splat(5.590642616e-2f));
  p = fma(p, f, splat(0.240240991f));
  p = fma(p, f, splat(0.693124175f));
  return scale_normal(fma(p, f, splat(1.0f)), n);
}

// a / (1 + e^x). Not exact: with the errors of quick_exp and of reciprocal.
template <bool exact>
inline F32 over_one_and_exp(F32 a, F32 x) {
  if (exact) return a / (splat(1.0f) + exp(x));
  return a * reciprocal(splat(1.0f) + quick_exp(x));
}

// 1 / (1 + e^-x).
inline F32 sigmoid(F32 x) { return reciprocal(splat(1.0f) + exp(zero() - x)); }

template <bool exact = true>
inline F32 silu(F32 x) {
  return over_one_and_exp<exact>(x, zero() - x);
}

// x/2 (1 + tanh(u)) = x / (1 + e^-2u) with u = sqrt(2/pi) (x + 0.044715 x^3): no cancellation
// where tanh(u) is near -1 (Hendrycks and Gimpel, arXiv 1606.08415).
template <bool exact = true>
inline F32 gelu_tanh(F32 x) {
  const F32 inner = fma(x * x, splat(-0.0713548163f), splat(-1.59576912f));
  return over_one_and_exp<exact>(x, x * inner);
}

// The normal distribution function. Below 1 it is 1/2 + x P(x^2); above, the tail is
// e^(-x^2/2) t Q(t) with t = 1 / (1 + 0.4 |x| / sqrt 2), the form of Abramowitz and Stegun 7.1.26
// with coefficients fitted to 1e-8.
inline F32 normal_cdf(F32 x) {
  const F32 square = x * x, size = abs(x);
  F32 p = fma(square, splat(-7.65214008e-06f), splat(0.000113481161f));
  p = fma(p, square, splat(-0.00118632533f));
  p = fma(p, square, splat(0.00997332204f));
  p = fma(p, square, splat(-0.0664903596f));
  p = fma(p, square, splat(0.398942292f));
  const F32 near = fma(p, x, splat(0.5f));
  const F32 t = reciprocal(fma(size, splat(0.282842712f), splat(1.0f)));
  F32 q = fma(t, splat(-0.015214948f), splat(0.10118559f));
  q = fma(q, t, splat(-0.254307806f));
  q = fma(q, t, splat(0.279946536f));
  q = fma(q, t, splat(-0.147098154f));
  q = fma(q, t, splat(0.13852483f));
  q = fma(q, t, splat(0.0640297681f));
  q = fma(q, t, splat(0.107622117f));
  q = fma(q, t, splat(0.112457752f));
  q = fma(q, t, splat(0.112854332f));
  const F32 tail = q * t * exp(square * splat(-0.5f));
  const F32 far = select(less(x, zero()), tail, splat(1.0f) - tail);
  return select(less(size, splat(1.0f)), near, far);
}

inline F32 gelu_erf(F32 x) { return x * normal_cdf(x); }

}  // namespace
}  // namespace flashvl::cpu::FLASHVL_LEVEL
