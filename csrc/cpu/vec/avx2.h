// The vocabulary in AVX2, FMA and F16C: 8 lanes.
#pragma once

#include <immintrin.h>

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

constexpr int kLanes = 8;

struct F32 {
  __m256 lanes;
};

inline F32 zero() { return {_mm256_setzero_ps()}; }
inline F32 splat(float value) { return {_mm256_set1_ps(value)}; }
inline F32 operator+(F32 a, F32 b) { return {_mm256_add_ps(a.lanes, b.lanes)}; }
inline F32 operator*(F32 a, F32 b) { return {_mm256_mul_ps(a.lanes, b.lanes)}; }
inline F32 operator-(F32 a, F32 b) { return {_mm256_sub_ps(a.lanes, b.lanes)}; }
inline F32 operator/(F32 a, F32 b) { return {_mm256_div_ps(a.lanes, b.lanes)}; }
inline F32 fma(F32 a, F32 b, F32 c) { return {_mm256_fmadd_ps(a.lanes, b.lanes, c.lanes)}; }
inline F32 reciprocal(F32 d) { return splat(1.0f) / d; }
inline F32 min(F32 a, F32 b) { return {_mm256_min_ps(a.lanes, b.lanes)}; }
inline F32 max(F32 a, F32 b) { return {_mm256_max_ps(a.lanes, b.lanes)}; }
inline F32 sqrt(F32 a) { return {_mm256_sqrt_ps(a.lanes)}; }
inline F32 abs(F32 a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.lanes)}; }
inline F32 round(F32 a) {
  return {_mm256_round_ps(a.lanes, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}

// In two steps, so that each power is a normal number.
inline F32 scale_by_power(F32 a, F32 n) {
  const __m256i whole = _mm256_cvtps_epi32(n.lanes);
  const __m256i half = _mm256_srai_epi32(whole, 1), rest = _mm256_sub_epi32(whole, half);
  const __m256i bias = _mm256_set1_epi32(127);
  const __m256i first = _mm256_slli_epi32(_mm256_add_epi32(half, bias), 23);
  const __m256i second = _mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23);
  return {_mm256_mul_ps(_mm256_mul_ps(a.lanes, _mm256_castsi256_ps(first)),
                        _mm256_castsi256_ps(second))};
}

inline F32 scale_normal(F32 a, F32 n) {
  const __m256i power = _mm256_slli_epi32(_mm256_cvtps_epi32(n.lanes), 23);
  return {_mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a.lanes), power))};
}

struct Mask {
  __m256 lanes;
};

inline Mask less(F32 a, F32 b) { return {_mm256_cmp_ps(a.lanes, b.lanes, _CMP_LT_OQ)}; }
inline Mask is_nan(F32 a) { return {_mm256_cmp_ps(a.lanes, a.lanes, _CMP_UNORD_Q)}; }
inline F32 select(Mask mask, F32 a, F32 b) {
  return {_mm256_blendv_ps(b.lanes, a.lanes, mask.lanes)};
}

inline float reduce_add(F32 a) {
  __m128 sum = _mm_add_ps(_mm256_castps256_ps128(a.lanes), _mm256_extractf128_ps(a.lanes, 1));
  sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
  return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}

inline F32 add_neighbours(F32 a, F32 b) {
  const __m256d sums = _mm256_castps_pd(_mm256_hadd_ps(a.lanes, b.lanes));
  return {_mm256_castpd_ps(_mm256_permute4x64_pd(sums, 0b11011000))};
}

inline void reduce_add_each(const F32 (&a)[4], float* p) {
  const __m256 ab = _mm256_add_ps(_mm256_unpacklo_ps(a[0].lanes, a[1].lanes),
                                  _mm256_unpackhi_ps(a[0].lanes, a[1].lanes));
  const __m256 cd = _mm256_add_ps(_mm256_unpacklo_ps(a[2].lanes, a[3].lanes),
                                  _mm256_unpackhi_ps(a[2].lanes, a[3].lanes));
  const __m256d x = _mm256_castps_pd(ab), y = _mm256_castps_pd(cd);
  const __m256 all = _mm256_add_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(x, y)),
                                   _mm256_castpd_ps(_mm256_unpackhi_pd(x, y)));
  _mm_storeu_ps(p, _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1)));
}

inline float reduce_max(F32 a) {
  __m128 top = _mm_max_ps(_mm256_castps256_ps128(a.lanes), _mm256_extractf128_ps(a.lanes, 1));
  top = _mm_max_ps(top, _mm_movehl_ps(top, top));
  return _mm_cvtss_f32(_mm_max_ss(top, _mm_movehdup_ps(top)));
}

inline __m128i load_16_bit(const void* p) {
  return _mm_loadu_si128(static_cast<const __m128i*>(p));
}

inline void store_16_bit(void* p, __m128i bits) {
  _mm_storeu_si128(static_cast<__m128i*>(p), bits);
}

inline F32 load(const float* p) { return {_mm256_loadu_ps(p)}; }

inline F32 load(const BF16* p) {
  const __m256i wide = _mm256_cvtepu16_epi32(load_16_bit(p));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(wide, 16))};
}

inline F32 load(const uint8_t* p) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes))};
}

inline F32 load(const F16* p) { return {_mm256_cvtph_ps(load_16_bit(p))}; }

// The high halves of the result are bf16 bits, rounded to nearest even; the low halves are rest. Of
// a NaN they are anything.
inline __m256i round_number(F32 a) {
  const __m256i bits = _mm256_castps_si256(a.lanes);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i bias = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
  return _mm256_add_epi32(bits, bias);
}

inline __m256i round_high_half(F32 a) {
  const __m256 rounded = _mm256_castsi256_ps(round_number(a));
  const __m256 nan = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000));
  const __m256 is_nan = _mm256_cmp_ps(a.lanes, a.lanes, _CMP_UNORD_Q);
  return _mm256_castps_si256(_mm256_blendv_ps(rounded, nan, is_nan));
}

inline __m128i to_bf16(F32 a) {
  const __m256i narrow = _mm256_srli_epi32(round_high_half(a), 16);
  return _mm_packus_epi32(_mm256_castsi256_si128(narrow), _mm256_extracti128_si256(narrow, 1));
}

inline __m128i to_f16(F32 a) {
  return _mm256_cvtps_ph(a.lanes, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

inline void store(float* p, F32 a) { _mm256_storeu_ps(p, a.lanes); }
inline void store(BF16* p, F32 a) { store_16_bit(p, to_bf16(a)); }
inline void store(F16* p, F32 a) { store_16_bit(p, to_f16(a)); }

// Rows end here once each, so a copy through the stack costs less than it would to read.
template <class T>
inline F32 load_some(const T* p, int64_t n) {
  T buffer[kLanes] = {};
  for (int64_t i = 0; i < n; ++i) buffer[i] = p[i];
  return load(buffer);
}

template <class T>
inline void store_some(T* p, F32 a, int64_t n) {
  T buffer[kLanes];
  store(buffer, a);
  for (int64_t i = 0; i < n; ++i) p[i] = buffer[i];
}

template <class T>
inline void store_both(T* p, F32 a, F32 b) {
  store(p, a);
  store(p + kLanes, b);
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
template <>
inline Two load_two(const BF16* p) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  const __m256i odd = _mm256_and_si256(bits, _mm256_set1_epi32(static_cast<int>(0xffff0000u)));
  return {{_mm256_castsi256_ps(_mm256_slli_epi32(bits, 16))}, {_mm256_castsi256_ps(odd)}};
}

// One comparison tells for both that there is no NaN, which the rounding of a number may skip.
inline bool all_numbers(Two two) {
  const __m256 unordered = _mm256_cmp_ps(two.a.lanes, two.b.lanes, _CMP_UNORD_Q);
  return __builtin_expect(_mm256_movemask_ps(unordered) == 0, true);
}

template <>
inline void store_two(BF16* p, Two two) {
  const bool numbers = all_numbers(two);
  const __m256i even = numbers ? round_number(two.a) : round_high_half(two.a);
  const __m256i odd = numbers ? round_number(two.b) : round_high_half(two.b);
  const __m256i both = _mm256_blend_epi16(_mm256_srli_epi32(even, 16), odd, 0b10101010);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), both);
}

template <class T>
inline F32 round_to(F32 a);

template <>
inline F32 round_to<float>(F32 a) {
  return a;
}

template <>
inline F32 round_to<BF16>(F32 a) {
  const __m256i high = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
  return {_mm256_castsi256_ps(_mm256_and_si256(round_high_half(a), high))};
}

template <>
inline F32 round_to<F16>(F32 a) {
  return {_mm256_cvtph_ps(to_f16(a))};
}

template <class T>
inline Two round_to(Two two) {
  return {round_to<T>(two.a), round_to<T>(two.b)};
}

template <>
inline Two round_to<BF16>(Two two) {
  if (!all_numbers(two)) return {round_to<BF16>(two.a), round_to<BF16>(two.b)};
  const __m256i high = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
  return {{_mm256_castsi256_ps(_mm256_and_si256(round_number(two.a), high))},
          {_mm256_castsi256_ps(_mm256_and_si256(round_number(two.b), high))}};
}

}  // namespace
}  // namespace flashvl::cpu::FLASHVL_LEVEL
