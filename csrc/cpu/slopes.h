// Derivatives of the activations of vec_math.h.
#pragma once

#include "vec_math.h"

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

// 1 / (1 + e^-x) and what it lacks of 1, which a subtraction would not give near 1.
struct Sigmoid {
  F32 value, rest;
};

inline Sigmoid both_sigmoids(F32 x) {
  const F32 e = exp(zero() - x);
  const F32 value = splat(1.0f) / (splat(1.0f) + e);
  return {value, min(e * value, splat(1.0f))};  // 1 where e is infinite and the value zero
}

inline F32 silu_slope(F32 x, Sigmoid s) { return s.value * fma(x, s.rest, splat(1.0f)); }

// The normal distribution function plus x times its density.
inline F32 gelu_erf_slope(F32 x) {
  const F32 density = exp(x * x * splat(-0.5f)) * splat(0.398942280f);
  return fma(x, density, normal_cdf(x));
}

// gelu_tanh is x s(2u) with s the sigmoid and u = sqrt(2/pi) (x + 0.044715 x^3).
inline F32 gelu_tanh_slope(F32 x) {
  const F32 square = x * x;
  const F32 twice_u = x * fma(square, splat(0.0713548163f), splat(1.59576912f));
  const F32 twice_slope = fma(square, splat(0.214064449f), splat(1.59576912f));
  const Sigmoid s = both_sigmoids(twice_u);
  return fma(x * s.value * s.rest, twice_slope, s.value);
}

}  // namespace
}  // namespace flashvl::cpu::FLASHVL_LEVEL
