// The AVX512_BF16 dot product on whole registers: what a level without tiles multiplies bf16 with.
//
//   Pairs                     a register of 32 bf16: 16 neighbouring pairs
//   one_pairs()               all 1.0
//   dot_pairs(c, a, b)        c + the products of a's and b's pairs, summed within each lane
//
// Reference: Intel SDM volume 2C, VDPBF16PS. Exists at levels avx512_bf16 and amx only.
#pragma once

#include "../vec.h"

#if defined(FLASHVL_HAS_AVX512_BF16)

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

struct Pairs {
  __m512bh values;
};

constexpr int kPairFlops = 4 * kLanes;  // two products and two sums a lane

inline Pairs one_pairs() { return {reinterpret_cast<__m512bh>(_mm512_set1_epi16(0x3f80))}; }

inline F32 dot_pairs(F32 c, Pairs a, Pairs b) {
  return {_mm512_dpbf16_ps(c.lanes, a.values, b.values)};
}

}  // namespace
}  // namespace flashvl::cpu::FLASHVL_LEVEL

#endif
