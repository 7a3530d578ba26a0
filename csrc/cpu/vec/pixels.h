// Weighted sums of bytes, exact in 32-bit integers: the vocabulary of the image resize.
//
//   I32                          a register of kLanes 32-bit integers, or of kBytes bytes
//   load_bytes(p, n)             n <= kBytes bytes, then zeros
//   load_pixels(p, n)            kPixels RGB pixels of n readable bytes, zeros past those: each
//   part
//                                of 16 bytes holds four pixels, as R R R R G G G G B B B B 0 0 0 0
//   interleave(a, b, c, d, out)  out: a0 b0 c0 d0 a1 b1 c1 d1 ..., in the order store_bytes undoes
//   put_factors(group, tap, w)   sets the weight of tap 0..3 in a group of kGroupBytes bytes
//   spread_factors(p)            kParts groups of weights, one for each part
//   splat_factors(p)             one group of weights for all lanes
//   Sums, no_sums()              weighted sums, a lane each, not yet joined
//   add_taps(sums, bytes, f)     adds the four bytes of each lane times their weights
//   join(sums)                   the sums as an I32
//   store_bytes(p, sums, n)      four registers of sums to n bytes, as Pillow rounds
//   store_pixels(sums, to)       adds up the parts of sums[k] and writes R, G, B and a fourth byte
//                                to to[k]
//
// Pillow's weights have 22 bits after the point; half is rounded up and the result is clipped to
// 0..255. A weight (23 bits and a sign) is split into factors that multiply fast: three bytes for
// the dot product of AVX512_VNNI, else two of 16 bits. Sums of a factor may wrap: the total fits.
#pragma once

#include "../vec.h"

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

constexpr int kBytes = 4 * kLanes;
constexpr int kPixels = kLanes;
constexpr int kParts = kLanes / 4;
constexpr int kFraction = 22;
constexpr int kTaps = 4;         // in a group
constexpr int kGroupBytes = 16;  // of factors

#if defined(FLASHVL_HAS_AVX512)

struct I32 {
  __m512i lanes;
};

inline __mmask64 first_bytes(int64_t n) {
  return n >= 64 ? ~uint64_t{0} : n <= 0 ? 0 : (uint64_t{1} << n) - 1;
}

inline I32 load_bytes(const uint8_t* p, int64_t n) {
  return {_mm512_maskz_loadu_epi8(first_bytes(n), p)};
}
inline I32 load_pixels(const uint8_t* p, int64_t n) {
  const __m512i bytes = _mm512_maskz_loadu_epi8(first_bytes(n < 48 ? n : 48), p);
  const __m512i parts = _mm512_setr_epi32(0, 1, 2, 2, 3, 4, 5, 5, 6, 7, 8, 8, 9, 10, 11, 11);
  const __m512i planes =
      _mm512_broadcast_i32x4(_mm_setr_epi8(0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11, -1, -1, -1, -1));
  return {_mm512_shuffle_epi8(_mm512_permutexvar_epi32(parts, bytes), planes)};
}
inline void interleave(I32 a, I32 b, I32 c, I32 d, I32 (&out)[4]) {
  const __m512i ab_low = _mm512_unpacklo_epi8(a.lanes, b.lanes);
  const __m512i ab_high = _mm512_unpackhi_epi8(a.lanes, b.lanes);
  const __m512i cd_low = _mm512_unpacklo_epi8(c.lanes, d.lanes);
  const __m512i cd_high = _mm512_unpackhi_epi8(c.lanes, d.lanes);
  out[0].lanes = _mm512_unpacklo_epi16(ab_low, cd_low);
  out[1].lanes = _mm512_unpackhi_epi16(ab_low, cd_low);
  out[2].lanes = _mm512_unpacklo_epi16(ab_high, cd_high);
  out[3].lanes = _mm512_unpackhi_epi16(ab_high, cd_high);
}

// w = high * 2^16 + middle * 2^8 + low, each from -128 to 127.
struct Factors {
  __m512i high, middle, low;
};
struct Sums {
  __m512i high, middle, low;
};

inline void put_factors(uint8_t* group, int64_t tap, int32_t weight) {
  const int8_t low = static_cast<int8_t>(weight & 255);
  const int32_t rest = (weight - low) >> 8;
  const int8_t middle = static_cast<int8_t>(rest & 255);
  group[tap] = static_cast<uint8_t>((rest - middle) >> 8);
  group[kTaps + tap] = static_cast<uint8_t>(middle);
  group[2 * kTaps + tap] = static_cast<uint8_t>(low);
}
inline Factors spread_factors(const uint8_t* p) {
  const __m512i groups = _mm512_loadu_si512(p);
  return {_mm512_shuffle_epi32(groups, _MM_PERM_AAAA), _mm512_shuffle_epi32(groups, _MM_PERM_BBBB),
          _mm512_shuffle_epi32(groups, _MM_PERM_CCCC)};
}
inline Factors splat_factors(const uint8_t* p) {
  int32_t quads[3];
  __builtin_memcpy(quads, p, sizeof quads);
  return {_mm512_set1_epi32(quads[0]), _mm512_set1_epi32(quads[1]), _mm512_set1_epi32(quads[2])};
}
inline Sums no_sums() {
  return {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512()};
}
inline Sums add_taps(Sums sums, I32 bytes, Factors by) {
  return {_mm512_dpbusd_epi32(sums.high, bytes.lanes, by.high),
          _mm512_dpbusd_epi32(sums.middle, bytes.lanes, by.middle),
          _mm512_dpbusd_epi32(sums.low, bytes.lanes, by.low)};
}
inline I32 join(Sums sums) {
  const __m512i upper = _mm512_add_epi32(_mm512_slli_epi32(sums.high, 8), sums.middle);
  return {_mm512_add_epi32(_mm512_slli_epi32(upper, 8), sums.low)};
}
inline __m512i to_grey(__m512i sum) {
  const __m512i half = _mm512_set1_epi32(1 << (kFraction - 1));
  return _mm512_srai_epi32(_mm512_add_epi32(sum, half), kFraction);
}
inline void store_bytes(uint8_t* p, const I32 (&sums)[4], int64_t n) {
  const __m512i low = _mm512_packs_epi32(to_grey(sums[0].lanes), to_grey(sums[1].lanes));
  const __m512i high = _mm512_packs_epi32(to_grey(sums[2].lanes), to_grey(sums[3].lanes));
  _mm512_mask_storeu_epi8(p, first_bytes(n), _mm512_packus_epi16(low, high));
}
inline void store_pixels(const I32 (&sums)[4], uint8_t* const (&to)[4]) {
  __m512i halves[2];
  for (int k = 0; k < 2; ++k) {
    const __m512i a = sums[2 * k].lanes, b = sums[2 * k + 1].lanes;
    halves[k] =
        _mm512_add_epi32(_mm512_shuffle_i32x4(a, b, 0x44), _mm512_shuffle_i32x4(a, b, 0xee));
  }
  const __m512i whole = _mm512_add_epi32(_mm512_shuffle_i32x4(halves[0], halves[1], 0x88),
                                         _mm512_shuffle_i32x4(halves[0], halves[1], 0xdd));
  const __m512i grey = _mm512_max_epi32(to_grey(whole), _mm512_setzero_si512());
  const __m128i bytes = _mm512_cvtusepi32_epi8(grey);
  const int pixels[4] = {_mm_extract_epi32(bytes, 0), _mm_extract_epi32(bytes, 1),
                         _mm_extract_epi32(bytes, 2), _mm_extract_epi32(bytes, 3)};
  for (int k = 0; k < 4; ++k) __builtin_memcpy(to[k], &pixels[k], 4);
}

#elif defined(FLASHVL_LEVEL_avx2)

struct I32 {
  __m256i lanes;
};

inline __m256i load_256(const void* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}

inline I32 load_bytes(const uint8_t* p, int64_t n) {
  if (n >= kBytes) return {load_256(p)};
  uint8_t buffer[kBytes] = {};
  for (int64_t i = 0; i < n; ++i) buffer[i] = p[i];
  return {load_256(buffer)};
}
inline I32 load_pixels(const uint8_t* p, int64_t n) {
  const __m256i planes = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11, -1, -1, -1, -1));
  uint8_t buffer[kBytes] = {};
  if (n < 28) {  // two loads of 16 bytes, 12 apart
    for (int64_t i = 0; i < n && i < 24; ++i) buffer[i] = p[i];
    p = buffer;
  }
  const __m128i low = load_16_bit(p), high = load_16_bit(p + 12);
  return {_mm256_shuffle_epi8(_mm256_set_m128i(high, low), planes)};
}
inline void interleave(I32 a, I32 b, I32 c, I32 d, I32 (&out)[4]) {
  const __m256i ab_low = _mm256_unpacklo_epi8(a.lanes, b.lanes);
  const __m256i ab_high = _mm256_unpackhi_epi8(a.lanes, b.lanes);
  const __m256i cd_low = _mm256_unpacklo_epi8(c.lanes, d.lanes);
  const __m256i cd_high = _mm256_unpackhi_epi8(c.lanes, d.lanes);
  out[0].lanes = _mm256_unpacklo_epi16(ab_low, cd_low);
  out[1].lanes = _mm256_unpackhi_epi16(ab_low, cd_low);
  out[2].lanes = _mm256_unpacklo_epi16(ab_high, cd_high);
  out[3].lanes = _mm256_unpackhi_epi16(ab_high, cd_high);
}

// w = high * 2^15 + low; taps 0 and 2 are the even bytes of a lane, taps 1 and 3 the odd ones.
struct Factors {
  __m256i high_even, high_odd, low_even, low_odd;
};
struct Sums {
  __m256i high, low;
};

inline void put_factors(uint8_t* group, int64_t tap, int32_t weight) {
  const int16_t high = static_cast<int16_t>(weight >> 15);
  const int16_t low = static_cast<int16_t>(weight & 0x7fff);
  const int64_t place = tap % 2 * 4 + tap / 2 * 2;
  __builtin_memcpy(group + place, &high, 2);
  __builtin_memcpy(group + kGroupBytes / 2 + place, &low, 2);
}
inline Factors spread_factors(const uint8_t* p) {
  const __m256i groups = load_256(p);
  return {_mm256_shuffle_epi32(groups, 0x00), _mm256_shuffle_epi32(groups, 0x55),
          _mm256_shuffle_epi32(groups, 0xaa), _mm256_shuffle_epi32(groups, 0xff)};
}
inline Factors splat_factors(const uint8_t* p) {
  int32_t pairs[4];
  __builtin_memcpy(pairs, p, sizeof pairs);
  return {_mm256_set1_epi32(pairs[0]), _mm256_set1_epi32(pairs[1]), _mm256_set1_epi32(pairs[2]),
          _mm256_set1_epi32(pairs[3])};
}
inline Sums no_sums() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
inline __m256i add_pairs(__m256i sum, __m256i a, __m256i b) {
  return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
}
inline Sums add_taps(Sums sums, I32 bytes, Factors by) {
  const __m256i even = _mm256_and_si256(bytes.lanes, _mm256_set1_epi32(0x00ff00ff));
  const __m256i odd = _mm256_srli_epi16(bytes.lanes, 8);
  return {add_pairs(add_pairs(sums.high, even, by.high_even), odd, by.high_odd),
          add_pairs(add_pairs(sums.low, even, by.low_even), odd, by.low_odd)};
}
inline I32 join(Sums sums) {
  return {_mm256_add_epi32(_mm256_slli_epi32(sums.high, 15), sums.low)};
}
inline __m256i to_grey(__m256i sum) {
  const __m256i half = _mm256_set1_epi32(1 << (kFraction - 1));
  return _mm256_srai_epi32(_mm256_add_epi32(sum, half), kFraction);
}
inline void store_bytes(uint8_t* p, const I32 (&sums)[4], int64_t n) {
  const __m256i low = _mm256_packs_epi32(to_grey(sums[0].lanes), to_grey(sums[1].lanes));
  const __m256i high = _mm256_packs_epi32(to_grey(sums[2].lanes), to_grey(sums[3].lanes));
  const __m256i bytes = _mm256_packus_epi16(low, high);
  if (n >= kBytes) return _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), bytes);
  uint8_t buffer[kBytes];
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(buffer), bytes);
  for (int64_t i = 0; i < n; ++i) p[i] = buffer[i];
}
inline void store_pixels(const I32 (&sums)[4], uint8_t* const (&to)[4]) {
  __m256i pairs[2];
  for (int k = 0; k < 2; ++k) {
    const __m256i a = sums[2 * k].lanes, b = sums[2 * k + 1].lanes;
    pairs[k] = to_grey(_mm256_add_epi32(_mm256_permute2x128_si256(a, b, 0x20),
                                        _mm256_permute2x128_si256(a, b, 0x31)));
  }
  // In-lane packs: the low half holds rows 0 and 2, the high half rows 1 and 3.
  const __m256i words = _mm256_packs_epi32(pairs[0], pairs[1]);
  const __m256i bytes = _mm256_packus_epi16(words, words);
  const int pixels[4] = {_mm256_extract_epi32(bytes, 0), _mm256_extract_epi32(bytes, 4),
                         _mm256_extract_epi32(bytes, 1), _mm256_extract_epi32(bytes, 5)};
  for (int k = 0; k < 4; ++k) __builtin_memcpy(to[k], &pixels[k], 4);
}

#else

static_assert(kLanes == 8, "this level has no pixels of its own");

// Lanes as unsigned numbers, which may wrap; kLanes is 8, two parts.
struct I32 {
  uint32_t lane[kLanes];
};

inline I32 load_bytes(const uint8_t* p, int64_t n) {
  uint8_t bytes[kBytes] = {};
  __builtin_memcpy(bytes, p, static_cast<unsigned long>(n < kBytes ? n : kBytes));
  I32 out;
  __builtin_memcpy(&out, bytes, sizeof out);
  return out;
}
inline I32 load_pixels(const uint8_t* p, int64_t n) {
  uint8_t bytes[3 * kPixels] = {};
  if (n > 0) __builtin_memcpy(bytes, p, static_cast<unsigned long>(n < 24 ? n : 24));
  I32 out = {};
  for (int part = 0; part < kParts; ++part) {
    for (int channel = 0; channel < 3; ++channel) {
      const uint8_t* at = bytes + 12 * part + channel;
      out.lane[4 * part + channel] = at[0] | at[3] << 8 | at[6] << 16 | uint32_t{at[9]} << 24;
    }
  }
  return out;
}
inline void interleave(I32 a, I32 b, I32 c, I32 d, I32 (&out)[4]) {
  for (int i = 0; i < kBytes; ++i) {
    const int shift = 8 * (i % 4);
    const auto byte = [i, shift](const I32& from) { return from.lane[i / 4] >> shift & 255u; };
    out[i / kLanes].lane[i % kLanes] = byte(a) | byte(b) << 8 | byte(c) << 16 | byte(d) << 24;
  }
}

// Each tap's weight as it is.
struct Factors {
  int32_t weight[kParts][kTaps];
};
struct Sums {
  uint32_t lane[kLanes];
};

inline void put_factors(uint8_t* group, int64_t tap, int32_t weight) {
  __builtin_memcpy(group + 4 * tap, &weight, 4);
}
inline Factors spread_factors(const uint8_t* p) {
  Factors out;
  __builtin_memcpy(&out, p, sizeof out);
  return out;
}
inline Factors splat_factors(const uint8_t* p) {
  Factors out;
  for (int part = 0; part < kParts; ++part) __builtin_memcpy(out.weight[part], p, kGroupBytes);
  return out;
}
inline Sums no_sums() { return {}; }
inline Sums add_taps(Sums sums, I32 bytes, const Factors& by) {
  for (int i = 0; i < kLanes; ++i) {
    for (int tap = 0; tap < kTaps; ++tap) {
      const uint32_t byte = bytes.lane[i] >> (8 * tap) & 255u;
      sums.lane[i] += byte * static_cast<uint32_t>(by.weight[i / 4][tap]);
    }
  }
  return sums;
}
inline I32 join(Sums sums) {
  I32 out;
  __builtin_memcpy(&out, &sums, sizeof out);
  return out;
}
inline uint8_t to_grey(uint32_t sum) {
  const int32_t grey = static_cast<int32_t>(sum + (1u << (kFraction - 1))) >> kFraction;
  return static_cast<uint8_t>(grey < 0 ? 0 : grey > 255 ? 255 : grey);
}
inline void store_bytes(uint8_t* p, const I32 (&sums)[4], int64_t n) {
  for (int64_t i = 0; i < n && i < kBytes; ++i) p[i] = to_grey(sums[i / kLanes].lane[i % kLanes]);
}
inline void store_pixels(const I32 (&sums)[4], uint8_t* const (&to)[4]) {
  for (int k = 0; k < 4; ++k) {
    for (int i = 0; i < 4; ++i) to[k][i] = to_grey(sums[k].lane[i] + sums[k].lane[i + 4]);
  }
}

#endif

}  // namespace
}  // namespace flashvl::cpu::FLASHVL_LEVEL
