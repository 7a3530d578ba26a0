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
    return both(Floats::along(p, n), n > kLanes ? Floats::along(p + kLanes, n - kLanes) : zero());
  }

  static F32 across(const float* p, int64_t depth, int64_t n, int64_t rows) {
    const F32 odd = n > 1 ? Floats::along(p + depth, rows) : zero();
    const __m512i halves = (__m512i)both(Floats::along(p, rows), odd).lanes;
    return {(__m512)_mm512_permutexvar_epi16(interleaved(), halves)};
  }

  static F32 add_products(F32 sum, F32 a, F32 b) {
    return dot_pairs(sum, {(__m512bh)a.lanes}, {(__m512bh)b.lanes});
  }

 private:
  // a's numbers in the lower half, b's in the upper one.
  static F32 both(F32 a, F32 b) { return {(__m512)_mm512_cvtne2ps_pbh(b.lanes, a.lanes)}; }

  // Word i of the lower half, then word i of the upper one.
  static __m512i interleaved() {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return _mm512_or_si512(lane,
                           _mm512_slli_epi32(_mm512_add_epi32(lane, _mm512_set1_epi32(16)), 16));
  }
};
#endif

}  // namespace
}  // namespace flashvl::cpu::FLASHVL_LEVEL
