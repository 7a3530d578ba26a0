// transpose(rows): rows[i] lane j <-> rows[j] lane i of kLanes vectors. Only moves bits, so the
// lanes may hold anything of 32 bits.
#pragma once

#include "../vec.h"

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

#if defined(FLASHVL_LEVEL_scalar)

inline void transpose(F32 (&rows)[kLanes]) {
  float from[kLanes][kLanes], to[kLanes][kLanes];
  for (int i = 0; i < kLanes; ++i) store(from[i], rows[i]);
  for (int i = 0; i < kLanes; ++i) {
    for (int j = 0; j < kLanes; ++j) to[j][i] = from[i][j];
  }
  for (int i = 0; i < kLanes; ++i) rows[i] = load(to[i]);
}

#elif defined(FLASHVL_LEVEL_avx2)

// In three rounds that swap blocks of 1, 2 and 4 lanes.
inline void transpose(F32 (&rows)[kLanes]) {
  __m256 a[kLanes], b[kLanes];
#pragma GCC unroll 4
  for (int i = 0; i < kLanes; i += 2) {
    a[i] = _mm256_unpacklo_ps(rows[i].lanes, rows[i + 1].lanes);
    a[i + 1] = _mm256_unpackhi_ps(rows[i].lanes, rows[i + 1].lanes);
  }
#pragma GCC unroll 2
  for (int i = 0; i < kLanes; i += 4) {
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      const __m256d low = _mm256_castps_pd(a[i + j]), high = _mm256_castps_pd(a[i + j + 2]);
      b[i + 2 * j] = _mm256_castpd_ps(_mm256_unpacklo_pd(low, high));
      b[i + 2 * j + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(low, high));
    }
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    rows[j].lanes = _mm256_permute2f128_ps(b[j], b[j + 4], 0x20);
    rows[j + 4].lanes = _mm256_permute2f128_ps(b[j], b[j + 4], 0x31);
  }
}

#else

// In four rounds that swap blocks of 1, 2, 4 and 8 lanes.
inline void transpose(F32 (&rows)[kLanes]) {
  __m512 a[kLanes], b[kLanes];
#pragma GCC unroll 8
  for (int i = 0; i < kLanes; i += 2) {
    a[i] = _mm512_unpacklo_ps(rows[i].lanes, rows[i + 1].lanes);
    a[i + 1] = _mm512_unpackhi_ps(rows[i].lanes, rows[i + 1].lanes);
  }
#pragma GCC unroll 4
  for (int i = 0; i < kLanes; i += 4) {
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      const __m512d low = _mm512_castps_pd(a[i + j]), high = _mm512_castps_pd(a[i + j + 2]);
      b[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
      b[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
    }
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const __m512 low01 = _mm512_shuffle_f32x4(b[j], b[j + 4], 0x88);
    const __m512 high01 = _mm512_shuffle_f32x4(b[j], b[j + 4], 0xdd);
    const __m512 low23 = _mm512_shuffle_f32x4(b[j + 8], b[j + 12], 0x88);
    const __m512 high23 = _mm512_shuffle_f32x4(b[j + 8], b[j + 12], 0xdd);
    rows[j].lanes = _mm512_shuffle_f32x4(low01, low23, 0x88);
    rows[j + 4].lanes = _mm512_shuffle_f32x4(high01, high23, 0x88);
    rows[j + 8].lanes = _mm512_shuffle_f32x4(low01, low23, 0xdd);
    rows[j + 12].lanes = _mm512_shuffle_f32x4(high01, high23, 0xdd);
  }
}

#endif

}  // namespace
}  // namespace flashvl::cpu::FLASHVL_LEVEL
