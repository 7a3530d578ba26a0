// A panel of plain bf16 rows: 16 of them transposed as pairs, without leaving the registers.
//
// One pair at a time, a store each, costs as much as the product of 320 rows by the panel does on
// AMX; 16 by 16 pairs are 16 loads, 64 shuffles and 16 stores.
#pragma once

#include "../vec.h"
#include "weights.h"

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

#if defined(FLASHVL_HAS_AVX512_BF16)
constexpr bool kTransposes = true;

// Word w of line l becomes word l of line w.
inline void transpose(__m512i (&lines)[16]) {
  __m512i a[16], b[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_epi32(lines[i], lines[i + 1]);
    a[i + 1] = _mm512_unpackhi_epi32(lines[i], lines[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    b[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
    b[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
    b[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
    b[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
  }
  // Now quarter q of b[i + j] is word 4 q + j of the lines i to i + 3.
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const __m512i even_low = _mm512_shuffle_i32x4(b[j], b[4 + j], 0b10001000);
    const __m512i even_high = _mm512_shuffle_i32x4(b[8 + j], b[12 + j], 0b10001000);
    const __m512i odd_low = _mm512_shuffle_i32x4(b[j], b[4 + j], 0b11011101);
    const __m512i odd_high = _mm512_shuffle_i32x4(b[8 + j], b[12 + j], 0b11011101);
    lines[j] = _mm512_shuffle_i32x4(even_low, even_high, 0b10001000);
    lines[4 + j] = _mm512_shuffle_i32x4(odd_low, odd_high, 0b10001000);
    lines[8 + j] = _mm512_shuffle_i32x4(even_low, even_high, 0b11011101);
    lines[12 + j] = _mm512_shuffle_i32x4(odd_low, odd_high, 0b11011101);
  }
}

// Columns [first, first + columns) of a panel, columns a multiple of 32. What the matrix lacks is
// zero, and nothing beyond its rows or their ends is read.
inline void transpose_panel(const Weights& w, int64_t panel, int64_t first, int64_t columns,
                            BF16* out) {
  constexpr int64_t kStep = 32;
  const int64_t row = panel * kPanel;
  const int64_t rows = w.rows - row < kPanel ? w.rows - row : kPanel;
  const BF16* p = static_cast<const BF16*>(w.data) + row * w.row_stride + first;
  for (int64_t k = 0; k < columns; k += kStep, out += kStep * kPanel) {
    const int64_t rest = w.columns - first - k;
    const int64_t there = rest <= 0 ? 0 : rest < kStep ? rest : kStep;
    const __mmask32 mask = static_cast<__mmask32>((uint64_t{1} << there) - 1);
    __m512i lines[16];
#pragma GCC unroll 16
    for (int r = 0; r < 16; ++r) {
      lines[r] = r < rows ? _mm512_maskz_loadu_epi16(mask, p + r * w.row_stride + k)
                          : _mm512_setzero_si512();
    }
    transpose(lines);
#pragma GCC unroll 16
    for (int r = 0; r < 16; ++r) _mm512_storeu_si512(out + r * kStep, lines[r]);
  }
}
#else
constexpr bool kTransposes = false;

inline void transpose_panel(const Weights&, int64_t, int64_t, int64_t, BF16*) {}
#endif

}  // namespace
}  // namespace flashvl::cpu::FLASHVL_LEVEL
