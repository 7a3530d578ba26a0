// dot.h in AVX-512 with VNNI, and BF16 where the level has it.
//
// An activation of 15 bits is 128 * high + low with both in 8 bits, so that vpdpbusd multiplies it
// in two instructions: 64 bytes of weights by one row cost two cycles, a tenth of what reading them
// from memory takes.
#pragma once

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

constexpr int kRowsAtOnce = 8;
// Zen 4 reads four places at once faster than one; of Intel's cores, which the other levels are
// for, that is not known.
#if defined(FLASHVL_LEVEL_avx512_bf16)
constexpr int kPanelsAtOnce = 4;
#else
constexpr int kPanelsAtOnce = 1;
#endif
constexpr int kFloatSums = 16, kByteSums = 8, kNibbleSums = 1;

// ---- floats ----------------------------------------------------------------------------------

// Pairs (a, b) of 16 rows to a register of a's and one of b's.
inline void separate(__m512 first, __m512 second, F32& even, F32& odd) {
  const __m512i evens =
      _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odds = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
  even = {_mm512_permutex2var_ps(first, evens, second)};
  odd = {_mm512_permutex2var_ps(first, odds, second)};
}

inline void load_pairs(const BF16* p, F32& even, F32& odd) {
  const __m512i bits = _mm512_loadu_si512(p);
  even = {_mm512_castsi512_ps(_mm512_slli_epi32(bits, 16))};
  odd = {_mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32(~0xffff)))};
}

inline void load_pairs(const F16* p, F32& even, F32& odd) {
  separate(load(p).lanes, load(p + kLanes).lanes, even, odd);
}

inline void load_pairs(const float* p, F32& even, F32& odd) {
  separate(load(p).lanes, load(p + kLanes).lanes, even, odd);
}

template <class T>
struct PanelStep {
  using X = float;
  F32 even, odd;
  void load(const T* p) { load_pairs(p, even, odd); }
  void add(F32 (&sums)[kParts], const float* x) const {
    sums[0] = fma(odd, splat(x[1]), fma(even, splat(x[0]), sums[0]));
  }
};

template <class T>
struct RowStep : WideRowStep<T> {};

#if defined(__AVX512BF16__)

inline F32 dot_pairs(__m512i a, __m512i b, F32 sum) {
  return {
      _mm512_dpbf16_ps(sum.lanes, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b))};
}

template <>
struct PanelStep<BF16> {
  using X = BF16;
  __m512i weights;
  void load(const BF16* p) { weights = _mm512_loadu_si512(p); }
  void add(F32 (&sums)[kParts], const BF16* x) const {
    int32_t pair;
    __builtin_memcpy(&pair, x, sizeof pair);
    sums[0] = dot_pairs(weights, _mm512_set1_epi32(pair), sums[0]);
  }
};

template <>
struct RowStep<BF16> {
  using X = BF16;
  static constexpr int kWidth = 32;
  __m512i weights;
  void load(const BF16* p) { weights = _mm512_loadu_si512(p); }
  void load_some(const BF16* p, int64_t n) {
    weights = _mm512_maskz_loadu_epi16(static_cast<__mmask32>((uint32_t{1} << n) - 1), p);
  }
  void add(F32& sum, const BF16* x) const { sum = dot_pairs(weights, _mm512_loadu_si512(x), sum); }
};

#endif

// ---- integers --------------------------------------------------------------------------------

struct Bytes {
  __m512i lanes;
};

inline Bytes load_bytes(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
inline Bytes load_bytes(const uint8_t* p, int64_t n) {
  return {_mm512_maskz_loadu_epi8((uint64_t{1} << n) - 1, p)};
}
inline void store_bytes(uint8_t* p, Bytes b) { _mm512_storeu_si512(p, b.lanes); }
inline Bytes flip_top(Bytes b) {
  return {_mm512_xor_si512(b.lanes, _mm512_set1_epi8(static_cast<char>(0x80)))};
}
inline Bytes low_nibbles(Bytes b) { return {_mm512_and_si512(b.lanes, _mm512_set1_epi8(15))}; }
inline Bytes high_nibbles(Bytes b) {
  return {_mm512_and_si512(_mm512_srli_epi16(b.lanes, 4), _mm512_set1_epi8(15))};
}

struct Sums {
  __m512i high, low;
};

inline Sums start(int32_t value) { return {_mm512_setzero_si512(), _mm512_set1_epi32(value)}; }
inline Sums start_row(int32_t value) {
  return {_mm512_setzero_si512(), _mm512_maskz_set1_epi32(1, value)};
}

inline Sums operator+(Sums a, Sums b) {
  return {_mm512_add_epi32(a.high, b.high), _mm512_add_epi32(a.low, b.low)};
}

// 64 columns' high parts, then their low parts: rows of a tile, at level amx.
inline int64_t four_at(int64_t i) { return i / 16 * 2 * kStepBytes + i % 16 * 4; }

inline void add_panel(Sums& sums, Bytes w, const uint8_t* x) {
  int32_t high, low;
  __builtin_memcpy(&high, x, sizeof high);
  __builtin_memcpy(&low, x + kStepBytes, sizeof low);
  sums.high = _mm512_dpbusd_epi32(sums.high, w.lanes, _mm512_set1_epi32(high));
  sums.low = _mm512_dpbusd_epi32(sums.low, w.lanes, _mm512_set1_epi32(low));
}

inline void add_row(Sums& sums, Bytes w, const uint8_t* x) {
  sums.high = _mm512_dpbusd_epi32(sums.high, w.lanes, _mm512_loadu_si512(x));
  sums.low = _mm512_dpbusd_epi32(sums.low, w.lanes, _mm512_loadu_si512(x + kStepBytes));
}

inline void finish(Sums sums, F32 (&out)[kParts]) {
  const __m512i whole = _mm512_add_epi32(_mm512_slli_epi32(sums.high, 7), sums.low);
  out[0] = {_mm512_cvtepi32_ps(whole)};
}

// 16 sums whose two parts are in memory, on top of `offset`.
inline F32 joined(const int32_t* high, const int32_t* low, int32_t offset) {
  const __m512i start = _mm512_add_epi32(_mm512_loadu_si512(low), _mm512_set1_epi32(offset));
  const __m512i whole = _mm512_add_epi32(_mm512_slli_epi32(_mm512_loadu_si512(high), 7), start);
  return {_mm512_cvtepi32_ps(whole)};
}

inline void split(const int16_t* q, int8_t* high, int8_t* low) {
  for (int i = 0; i < kStepBytes; ++i) {
    high[i] = static_cast<int8_t>((q[i] + 64) >> 7);
    low[i] = static_cast<int8_t>(q[i] - 128 * ((q[i] + 64) >> 7));
  }
}

inline void encode_row(const int16_t* q, uint8_t* x) {
  split(q, reinterpret_cast<int8_t*>(x), reinterpret_cast<int8_t*>(x) + kStepBytes);
}

inline void encode_panel(const int16_t* q, uint8_t* x) { encode_row(q, x); }

template <int shift, int mask>
inline F32 byte_field(const uint8_t* p) {
  const __m512i field = _mm512_srli_epi32(_mm512_loadu_si512(p), shift);
  return {_mm512_cvtepi32_ps(_mm512_and_si512(field, _mm512_set1_epi32(mask)))};
}

}  // namespace
}  // namespace flashvl::cpu::FLASHVL_LEVEL
