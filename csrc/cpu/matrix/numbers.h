// What products on vectors multiply, 32 bits a lane:
//
//   Floats       fp32 numbers, by fused multiply-adds
//   BF16Pairs    pairs of bf16 along the summed axis, by vdpbf16ps. Level avx512_bf16 only: at half
//                the memory twice the FLOPs on Zen 4. Numbers below 2^-126 count as zero
//
// A step of the summed axis is kColumns columns.
//
//   along(p, n)                 kLanes steps of one row, of which n columns are there
//   across(p, depth, n, rows)   a step of kLanes rows: n columns, `depth` floats apart, and `rows`
//                               rows are there
//   add_products(sum, a, b)     lane by lane
//
// What is not there is zero.
#pragma once

#include "../vec.h"
#include "register_dot.h"

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

struct Floats {
  static constexpr int64_t kColumns = 1;

  static F32 along(const float* p, int64_t n) { return load_up_to(p, n); }

  static F32 across(const float* p, int64_t, int64_t, int64_t rows) { return along(p, rows); }

  static F32 add_products(F32 sum, F32 a, F32 b) { return fma(a, b, sum); }
};

#if defined(FLASHVL_LEVEL_avx512_bf16)
struct BF16Pairs {
  static constexpr int64_t kColumns = 2;

  static F32 along(const float* p, int64_t n) {
    const F32 next = n > kLanes ? Floats::along(p + kLanes, n - kLanes) : zero();
    return {(__m512)convert_both(Floats::along(p, n), next)};
  }

  static F32 across(const float* p, int64_t depth, int64_t n, int64_t rows) {
    const F32 odd = n > 1 ? Floats::along(p + depth, rows) : zero();
    return {(__m512)interleave_halves(convert_both(Floats::along(p, rows), odd))};
  }

  static F32 add_products(F32 sum, F32 a, F32 b) {
    return dot_pairs(sum, {(__m512bh)a.lanes}, {(__m512bh)b.lanes});
  }
};
#endif

}  // namespace
}  // namespace flashvl::cpu::FLASHVL_LEVEL
