// The vocabulary in AVX-512 F, BW, VL and DQ: 16 lanes, and masks for the ends of rows.
// AVX512_BF16 rounds two vectors in one instruction, but flushes subnormals to zero: where it is
// there, only those are rounded by hand.
#pragma once

#include <immintrin.h>

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

constexpr int kLanes = 16;

struct F32 {
  __m512 lanes;
};

inline F32 zero() { return {_mm512_setzero_ps()}; }
inline F32 splat(float value) { return {_mm512_set1_ps(value)}; }
inline F32 operator+(F32 a, F32 b) { return {_mm512_add_ps(a.lanes, b.lanes)}; }
inline F32 operator*(F32 a, F32 b) { return {_mm512_mul_ps(a.lanes, b.lanes)}; }
inline F32 operator-(F32 a, F32 b) { return {_mm512_sub_ps(a.lanes, b.lanes)}; }
inline F32 operator/(F32 a, F32 b) { return {_mm512_div_ps(a.lanes, b.lanes)}; }
inline F32 fma(F32 a, F32 b, F32 c) { return {_mm512_fmadd_ps(a.lanes, b.lanes, c.lanes)}; }
// 14 bits, doubled by a step of Newton's: a division takes 24 cycles, this 5 instructions. Of
// infinity the guess, zero, stays: infinity times zero would be NaN.
inline F32 reciprocal(F32 d) {
  const __m512 guess = _mm512_rcp14_ps(d.lanes);
  const __m512 rest = _mm512_fnmadd_ps(d.lanes, guess, _mm512_set1_ps(1.0f));
  const __mmask16 finite = _mm512_cmp_ps_mask(d.lanes, _mm512_set1_ps(0x1.fffffep127f), _CMP_LE_OQ);
  return {_mm512_mask_fmadd_ps(guess, finite, rest, guess)};
}
inline F32 min(F32 a, F32 b) { return {_mm512_min_ps(a.lanes, b.lanes)}; }
inline F32 max(F32 a, F32 b) { return {_mm512_max_ps(a.lanes, b.lanes)}; }
inline F32 sqrt(F32 a) { return {_mm512_sqrt_ps(a.lanes)}; }
inline F32 abs(F32 a) { return {_mm512_abs_ps(a.lanes)}; }
inline F32 round(F32 a) {
  return {_mm512_roundscale_ps(a.lanes, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
inline F32 scale_by_power(F32 a, F32 n) { return {_mm512_scalef_ps(a.lanes, n.lanes)}; }
inline F32 scale_normal(F32 a, F32 n) { return scale_by_power(a, n); }

struct Mask {
  __mmask16 lanes;
};

inline Mask less(F32 a, F32 b) { return {_mm512_cmp_ps_mask(a.lanes, b.lanes, _CMP_LT_OQ)}; }
inline Mask is_nan(F32 a) { return {_mm512_cmp_ps_mask(a.lanes, a.lanes, _CMP_UNORD_Q)}; }
inline F32 select(Mask mask, F32 a, F32 b) {
  return {_mm512_mask_blend_ps(mask.lanes, b.lanes, a.lanes)};
}

inline float reduce_add(F32 a) { return _mm512_reduce_add_ps(a.lanes); }
// Interleaving halves the vectors three times: 13 instructions where four sums take 32.
inline F32 add_neighbours(F32 a, F32 b) {
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
  return {_mm512_add_ps(_mm512_permutex2var_ps(a.lanes, even, b.lanes),
                        _mm512_permutex2var_ps(a.lanes, odd, b.lanes))};
}

inline void reduce_add_each(const F32 (&a)[4], float* p) {
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a[0].lanes, a[1].lanes),
                                  _mm512_unpackhi_ps(a[0].lanes, a[1].lanes));
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(a[2].lanes, a[3].lanes),
                                  _mm512_unpackhi_ps(a[2].lanes, a[3].lanes));
  const __m512d x = _mm512_castps_pd(ab), y = _mm512_castps_pd(cd);
  const __m512 all = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)),
                                   _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
  _mm_storeu_ps(p, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
}

inline float reduce_max(F32 a) { return _mm512_reduce_max_ps(a.lanes); }

inline F32 from_bf16(__m256i bits) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
}

inline F32 from_f16(__m256i bits) { return {_mm512_cvtph_ps(bits)}; }

// The high halves of the result are bf16 bits, rounded to nearest even; the low halves are rest.
inline __m512i round_high_half(F32 a) {
  const __m512i bits = _mm512_castps_si512(a.lanes);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i bias = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
  const __mmask16 is_nan = _mm512_cmp_ps_mask(a.lanes, a.lanes, _CMP_UNORD_Q);
  return _mm512_mask_blend_epi32(is_nan, _mm512_add_epi32(bits, bias),
                                 _mm512_set1_epi32(0x7fc00000));
}

#if defined(FLASHVL_HAS_AVX512_BF16)
constexpr int kSubnormal = 0x20;  // the class of vfpclassps

inline bool has_subnormal(F32 a) {
  return __builtin_expect(_mm512_fpclass_ps_mask(a.lanes, kSubnormal) != 0, 0);
}

inline bool has_subnormal(F32 a, F32 b) {
  const __mmask16 in_a = _mm512_fpclass_ps_mask(a.lanes, kSubnormal);
  const __mmask16 in_b = _mm512_fpclass_ps_mask(b.lanes, kSubnormal);
  return __builtin_expect(!_kortestz_mask16_u8(in_a, in_b), 0);
}

// a's bf16 in the lower half, b's in the upper one; subnormals are zeros.
inline __m512i convert_both(F32 a, F32 b) { return (__m512i)_mm512_cvtne2ps_pbh(b.lanes, a.lanes); }

// Word i of the lower half, then word i of the upper one.
inline __m512i interleave_halves(__m512i words) {
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i upper = _mm512_slli_epi32(_mm512_add_epi32(lane, _mm512_set1_epi32(16)), 16);
  return _mm512_permutexvar_epi16(_mm512_or_si512(lane, upper), words);
}
#endif

inline __m256i to_bf16(F32 a) {
#if defined(FLASHVL_HAS_AVX512_BF16)
  if (!has_subnormal(a)) return (__m256i)_mm512_cvtneps_pbh(a.lanes);
#endif
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(round_high_half(a), 16));
}

// The bf16 of two vectors in turns: those of a in the lower halves of the lanes.
inline __m512i to_bf16_in_turns(F32 a, F32 b) {
#if defined(FLASHVL_HAS_AVX512_BF16)
  if (!has_subnormal(a, b)) return interleave_halves(convert_both(a, b));
#endif
  return _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_srli_epi32(round_high_half(a), 16),
                                 round_high_half(b));
}

inline __m256i to_f16(F32 a) {
  return _mm512_cvtps_ph(a.lanes, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

inline __mmask16 first(int64_t n) { return static_cast<__mmask16>((1u << n) - 1u); }

inline F32 load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline F32 load(const BF16* p) { return from_bf16(_mm256_loadu_epi16(p)); }
inline F32 load(const uint8_t* p) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes))};
}
inline F32 load(const F16* p) { return from_f16(_mm256_loadu_epi16(p)); }

inline F32 load_some(const float* p, int64_t n) { return {_mm512_maskz_loadu_ps(first(n), p)}; }
inline F32 load_some(const uint8_t* p, int64_t n) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(first(n), p)))};
}
inline F32 load_some(const BF16* p, int64_t n) {
  return from_bf16(_mm256_maskz_loadu_epi16(first(n), p));
}
inline F32 load_some(const F16* p, int64_t n) {
  return from_f16(_mm256_maskz_loadu_epi16(first(n), p));
}

inline void store(float* p, F32 a) { _mm512_storeu_ps(p, a.lanes); }
inline void store(BF16* p, F32 a) { _mm256_storeu_epi16(p, to_bf16(a)); }
inline void store(F16* p, F32 a) { _mm256_storeu_epi16(p, to_f16(a)); }

inline void store_some(float* p, F32 a, int64_t n) { _mm512_mask_storeu_ps(p, first(n), a.lanes); }
inline void store_some(BF16* p, F32 a, int64_t n) {
  _mm256_mask_storeu_epi16(p, first(n), to_bf16(a));
}
inline void store_some(F16* p, F32 a, int64_t n) {
  _mm256_mask_storeu_epi16(p, first(n), to_f16(a));
}

template <class T>
inline void store_both(T* p, F32 a, F32 b) {
  store(p, a);
  store(p + kLanes, b);
}

template <>
inline void store_both(BF16* p, F32 a, F32 b) {
#if defined(FLASHVL_HAS_AVX512_BF16)
  _mm512_storeu_si512(p, convert_both(a, b));
#else
  store(p, a);
  store(p + kLanes, b);
#endif
}

struct Two {
  F32 a, b;
};

template <class T>
inline Two load_two(const T* p) {
  return {load(p), load(p + kLanes)};
}

template <class T>
inline void store_two(T* p, Two two) {
  store(p, two.a);
  store(p + kLanes, two.b);
}

// The even elements, then the odd ones: a shift and a mask in place of two widening shuffles.
inline Two from_bf16_in_turns(__m512i bits) {
  const __m512i odd = _mm512_and_si512(bits, _mm512_set1_epi32(static_cast<int>(0xffff0000u)));
  return {{_mm512_castsi512_ps(_mm512_slli_epi32(bits, 16))}, {_mm512_castsi512_ps(odd)}};
}

template <>
inline Two load_two(const BF16* p) {
  return from_bf16_in_turns(_mm512_loadu_si512(p));
}

template <>
inline void store_two(BF16* p, Two two) {
  _mm512_storeu_si512(p, to_bf16_in_turns(two.a, two.b));
}

template <class T>
inline F32 round_to(F32 a);

template <>
inline F32 round_to<float>(F32 a) {
  return a;
}

template <>
inline F32 round_to<BF16>(F32 a) {
  const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  return {_mm512_castsi512_ps(_mm512_and_si512(round_high_half(a), high))};
}

template <>
inline F32 round_to<F16>(F32 a) {
  return from_f16(to_f16(a));
}

template <class T>
inline Two round_to(Two two) {
  return {round_to<T>(two.a), round_to<T>(two.b)};
}

#if defined(FLASHVL_HAS_AVX512_BF16)
template <>
inline Two round_to<BF16>(Two two) {
  return from_bf16_in_turns(to_bf16_in_turns(two.a, two.b));
}
#endif

}  // namespace
}  // namespace flashvl::cpu::FLASHVL_LEVEL
