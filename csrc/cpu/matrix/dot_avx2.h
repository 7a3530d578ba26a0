// dot.h in AVX2. Without VNNI, bytes are widened to 16 bits, where vpmaddwd takes the activations
// of 15 bits whole; vpmaddubsw would saturate.
#pragma once

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

constexpr int kRowsAtOnce = 4;
constexpr int kPanelsAtOnce = 4;
constexpr int kFloatSums = 4, kByteSums = 4, kNibbleSums = 4;

// ---- floats ----------------------------------------------------------------------------------

// Pairs (a, b) of 8 rows to a register of a's and one of b's.
inline void separate(__m256 first, __m256 second, F32& even, F32& odd) {
  const __m256 low = _mm256_permute2f128_ps(first, second, 0x20);
  const __m256 high = _mm256_permute2f128_ps(first, second, 0x31);
  even = {_mm256_shuffle_ps(low, high, 0x88)};
  odd = {_mm256_shuffle_ps(low, high, 0xdd)};
}

inline void load_pairs(const BF16* p, F32& even, F32& odd) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  even = {_mm256_castsi256_ps(_mm256_slli_epi32(bits, 16))};
  odd = {_mm256_castsi256_ps(_mm256_and_si256(bits, _mm256_set1_epi32(~0xffff)))};
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
  F32 even[kParts], odd[kParts];
  void load(const T* p) {
    load_pairs(p, even[0], odd[0]);
    load_pairs(p + 2 * kLanes, even[1], odd[1]);
  }
  void add(F32 (&sums)[kParts], const float* x) const {
    const F32 x0 = splat(x[0]), x1 = splat(x[1]);
    sums[0] = fma(odd[0], x1, fma(even[0], x0, sums[0]));
    sums[1] = fma(odd[1], x1, fma(even[1], x0, sums[1]));
  }
};

template <class T>
struct RowStep : WideRowStep<T> {};

// ---- integers --------------------------------------------------------------------------------

struct Bytes {
  __m256i half[2];
};

inline Bytes load_bytes(const uint8_t* p) {
  const __m256i* halves = reinterpret_cast<const __m256i*>(p);
  return {{_mm256_loadu_si256(halves), _mm256_loadu_si256(halves + 1)}};
}
inline Bytes load_bytes(const uint8_t* p, int64_t n) {
  uint8_t buffer[kStepBytes] = {};
  for (int64_t i = 0; i < n; ++i) buffer[i] = p[i];
  return load_bytes(buffer);
}
inline Bytes flip_top(Bytes b) {
  const __m256i top = _mm256_set1_epi8(static_cast<char>(0x80));
  return {{_mm256_xor_si256(b.half[0], top), _mm256_xor_si256(b.half[1], top)}};
}
inline Bytes low_nibbles(Bytes b) {
  const __m256i mask = _mm256_set1_epi8(15);
  return {{_mm256_and_si256(b.half[0], mask), _mm256_and_si256(b.half[1], mask)}};
}
inline Bytes high_nibbles(Bytes b) {
  return low_nibbles({{_mm256_srli_epi16(b.half[0], 4), _mm256_srli_epi16(b.half[1], 4)}});
}

struct Sums {
  __m256i half[2];
};

inline Sums start(int32_t value) { return {{_mm256_set1_epi32(value), _mm256_set1_epi32(value)}}; }
inline Sums start_row(int32_t value) {
  return {{_mm256_setr_epi32(value, 0, 0, 0, 0, 0, 0, 0), _mm256_setzero_si256()}};
}

inline Sums operator+(Sums a, Sums b) {
  return {{_mm256_add_epi32(a.half[0], b.half[0]), _mm256_add_epi32(a.half[1], b.half[1])}};
}

// The bytes at even and at odd places, times 16-bit x's in the same order.
inline __m256i add_halves(__m256i sum, __m256i w, __m256i x_even, __m256i x_odd) {
  const __m256i even = _mm256_and_si256(w, _mm256_set1_epi16(0xff));
  const __m256i odd = _mm256_srli_epi16(w, 8);
  sum = _mm256_add_epi32(sum, _mm256_madd_epi16(even, x_even));
  return _mm256_add_epi32(sum, _mm256_madd_epi16(odd, x_odd));
}

inline int64_t four_at(int64_t i) { return 8 * i; }

inline void add_panel(Sums& sums, Bytes w, const uint8_t* x) {
  int32_t even, odd;
  __builtin_memcpy(&even, x, sizeof even);
  __builtin_memcpy(&odd, x + sizeof even, sizeof odd);
  const __m256i x_even = _mm256_set1_epi32(even), x_odd = _mm256_set1_epi32(odd);
  sums.half[0] = add_halves(sums.half[0], w.half[0], x_even, x_odd);
  sums.half[1] = add_halves(sums.half[1], w.half[1], x_even, x_odd);
}

inline void add_row(Sums& sums, Bytes w, const uint8_t* x) {
  const __m256i* parts = reinterpret_cast<const __m256i*>(x);
  for (int h = 0; h < 2; ++h) {
    sums.half[h] = add_halves(sums.half[h], w.half[h], _mm256_loadu_si256(parts + 2 * h),
                              _mm256_loadu_si256(parts + 2 * h + 1));
  }
}

inline void finish(Sums sums, F32 (&out)[kParts]) {
  out[0] = {_mm256_cvtepi32_ps(sums.half[0])};
  out[1] = {_mm256_cvtepi32_ps(sums.half[1])};
}

// Runs of `run` integers, those at even places first.
template <int run>
inline void encode(const int16_t* q, int16_t* x) {
  for (int first = 0; first < kStepBytes; first += run) {
    for (int i = 0; i < run / 2; ++i) {
      x[first + i] = q[first + 2 * i];
      x[first + run / 2 + i] = q[first + 2 * i + 1];
    }
  }
}

inline void encode_row(const int16_t* q, uint8_t* x) {
  encode<32>(q, reinterpret_cast<int16_t*>(x));
}
inline void encode_panel(const int16_t* q, uint8_t* x) {
  encode<4>(q, reinterpret_cast<int16_t*>(x));
}

template <int shift, int mask>
inline F32 byte_field(const uint8_t* p) {
  const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  const __m256i field = _mm256_srli_epi32(words, shift);
  return {_mm256_cvtepi32_ps(_mm256_and_si256(field, _mm256_set1_epi32(mask)))};
}

}  // namespace
}  // namespace flashvl::cpu::FLASHVL_LEVEL
