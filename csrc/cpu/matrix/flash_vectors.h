// What the flash kernels need beside vec.h: powers of two.
//
// exp2_exact errs by less than 1.5e-7 of the result, exp2_short by less than 1e-4 (2^-13), well
// inside the 2^-9 with which a probability is rounded to bf16 right after.
#pragma once

#include "../vec.h"
#include "transpose_floats.h"

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

// Asks for a row of n elements to come to the second-level cache.
template <class T>
inline void fetch(const T* row, int64_t n) {
  const char* bytes = reinterpret_cast<const char*>(row);
  const int64_t size = n * static_cast<int64_t>(sizeof(T));
  for (int64_t at = 0; at < size; at += 64) __builtin_prefetch(bytes + at, 0, 2);
}

// 2^x for x <= 1 or so; 0 at minus infinity, NaN stays NaN. The polynomial is a minimax fit on
// [-1/2, 1/2], relative.
inline F32 exp2_exact(F32 x) {
  const F32 inside = max(splat(-200.0f), x);
  const F32 n = round(inside);
  const F32 r = inside - n;
  F32 p = fma(r, splat(1.53533e-4f), splat(1.33988e-3f));
  p = fma(p, r, splat(9.61843736e-3f));
  p = fma(p, r, splat(5.55033235e-2f));
  p = fma(p, r, splat(2.40226463e-1f));
  p = fma(p, r, splat(6.93147181e-1f));
  p = fma(p, r, splat(1.0f));
  return scale_by_power(p, n);
}

#if defined(FLASHVL_HAS_AVX512)

// The fraction above the whole number below x, and p times two to that number, are an instruction
// each; both know what to do with infinities.
template <bool half_up>
inline F32 exp2_fraction(F32 x) {
  const F32 r = {_mm512_reduce_ps(x.lanes, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)};
  F32 p = fma(r, splat(7.802452261e-2f), splat(2.260671555e-1f));
  p = fma(p, r, splat(6.958335405e-1f));
  p = fma(p, r, splat(9.999252186e-1f + (half_up ? 0x1p-8f : 0.0f)));
  return {_mm512_scalef_ps(p.lanes, x.lanes)};
}

inline F32 exp2_short(F32 x) { return exp2_fraction<false>(x); }

// 2^x and half a last place of bf16, so that cutting off the lower half of its bits rounds it: the
// polynomial lies in [1, 2), where that is a constant.
inline F32 exp2_to_cut(F32 x) { return exp2_fraction<true>(x); }

#else

inline F32 exp2_short(F32 x) { return exp2_exact(x); }

#endif

}  // namespace
}  // namespace flashvl::cpu::FLASHVL_LEVEL
