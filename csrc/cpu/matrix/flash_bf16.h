// Registers of bf16 pairs, as bits in fp32 lanes, for the two bf16 engines of flash.h.
#pragma once

#include "flash_softmax.h"

#if defined(FLASHVL_HAS_AVX512_BF16)

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

inline __mmask32 first_of_32(int64_t n) {
  return n >= 32 ? 0xffffffffu : n <= 0 ? 0u : (1u << n) - 1u;
}

// n of 32 elements, zeros after them; as bits in fp32 lanes.
inline F32 load_pairs(const BF16* p, int64_t n) {
  return {_mm512_castsi512_ps(_mm512_maskz_loadu_epi16(first_of_32(n), p))};
}

inline void store_pairs(BF16* p, F32 a) { _mm512_storeu_si512(p, _mm512_castps_si512(a.lanes)); }

inline F32 flip_signs(F32 pairs) {
  const __m512i signs = _mm512_set1_epi32(static_cast<int>(0x80008000u));
  return {_mm512_castsi512_ps(_mm512_xor_si512(_mm512_castps_si512(pairs.lanes), signs))};
}

// Pairs (a[i], b[i]) of n <= 16 elements; b may be null for zeros.
inline F32 zip(const BF16* a, const BF16* b, int64_t n) {
  const __mmask16 some = static_cast<__mmask16>(first_of_32(n));
  const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(some, a));
  if (b == nullptr) return {_mm512_castsi512_ps(low)};
  const __m512i high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(some, b));
  return {_mm512_castsi512_ps(_mm512_or_si512(low, _mm512_slli_epi32(high, 16)))};
}

// Pairs of the upper halves of two rows.
inline F32 cut_to_pairs(F32 even, F32 odd) {
  const __m512i low = _mm512_srli_epi32(_mm512_castps_si512(even.lanes), 16);
  const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  return {_mm512_castsi512_ps(_mm512_ternarylogic_epi32(low, _mm512_castps_si512(odd.lanes), high,
                                                        0xf8 /* a | (b & c) */))};
}

// sum + both numbers of each pair.
inline F32 add_pairs(F32 sum, F32 pairs) {
  const __m512bh ones = (__m512bh)_mm512_set1_epi32(0x3f803f80);
  return {_mm512_dpbf16_ps(sum.lanes, (__m512bh)_mm512_castps_si512(pairs.lanes), ones)};
}

}  // namespace
}  // namespace flashvl::cpu::FLASHVL_LEVEL

#endif
