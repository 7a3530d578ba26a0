// Weight panels in the elements a product's inner block multiplies: in place where they lie so in
// memory, else unpacked, a panel and a few steps at a time, into a scratch panel that the block
// then finds in the first-level cache.
//
// int8 weights stay whole numbers, exact in bf16; their scale belongs to the epilogue. int4 weights
// are multiplied by the scale of their group here, and rounded where the element is bf16, as the
// reference does. Unpacking is paid once for each block of rows.
#pragma once

#include "../vec.h"
#include "row_layout.h"
#include "transpose.h"
#include "weights.h"

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

constexpr int64_t kMaxSteps = 48;  // of kDepth columns: the largest scratch panel
constexpr int64_t kMaxColumns = kMaxSteps * kDepth;
constexpr float kInt8Zero = 128.0f, kInt4Zero = 8.0f;

// 64-bit halves of even place in (a, b), and of odd place: of four columns' bytes k to k + 3 the
// pairs (k, k + 1), and (k + 2, k + 3).
#if defined(FLASHVL_LEVEL_scalar)
inline F32 pairs_of(F32 a, F32 b, int odd) {
  F32 out;
  for (int i = 0; i < kLanes; ++i) {
    const int from = (i / 2 * 2 + odd) * 2 + i % 2;
    out.lane[i] = from < kLanes ? a.lane[from] : b.lane[from - kLanes];
  }
  return out;
}
inline F32 even_pairs(F32 a, F32 b) { return pairs_of(a, b, 0); }
inline F32 odd_pairs(F32 a, F32 b) { return pairs_of(a, b, 1); }
#elif defined(FLASHVL_LEVEL_avx2)
inline F32 in_order(__m256d pairs) {
  return {_mm256_castpd_ps(_mm256_permute4x64_pd(pairs, 0b11011000))};
}
inline F32 even_pairs(F32 a, F32 b) {
  return in_order(_mm256_unpacklo_pd(_mm256_castps_pd(a.lanes), _mm256_castps_pd(b.lanes)));
}
inline F32 odd_pairs(F32 a, F32 b) {
  return in_order(_mm256_unpackhi_pd(_mm256_castps_pd(a.lanes), _mm256_castps_pd(b.lanes)));
}
#else
inline F32 pairs_of(F32 a, __m512i places, F32 b) {
  return {_mm512_castpd_ps(
      _mm512_permutex2var_pd(_mm512_castps_pd(a.lanes), places, _mm512_castps_pd(b.lanes)))};
}
inline F32 even_pairs(F32 a, F32 b) {
  return pairs_of(a, _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14), b);
}
inline F32 odd_pairs(F32 a, F32 b) {
  return pairs_of(a, _mm512_setr_epi64(1, 3, 5, 7, 9, 11, 13, 15), b);
}
#endif

// The values of kLanes bytes' low and high nibbles.
#if defined(FLASHVL_LEVEL_scalar)
inline F32 load_low_nibbles(const uint8_t* p) {
  F32 out;
  for (int i = 0; i < kLanes; ++i) out.lane[i] = static_cast<float>(p[i] & 15);
  return out;
}
inline F32 load_high_nibbles(const uint8_t* p) {
  F32 out;
  for (int i = 0; i < kLanes; ++i) out.lane[i] = static_cast<float>(p[i] >> 4);
  return out;
}
#elif defined(FLASHVL_LEVEL_avx2)
inline __m256i widened_bytes_of(const uint8_t* p) {
  return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}
inline F32 load_low_nibbles(const uint8_t* p) {
  return {_mm256_cvtepi32_ps(_mm256_and_si256(widened_bytes_of(p), _mm256_set1_epi32(15)))};
}
inline F32 load_high_nibbles(const uint8_t* p) {
  return {_mm256_cvtepi32_ps(_mm256_srli_epi32(widened_bytes_of(p), 4))};
}
#else
inline __m512i widened_bytes_of(const uint8_t* p) {
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline F32 load_low_nibbles(const uint8_t* p) {
  return {_mm512_cvtepi32_ps(_mm512_and_si512(widened_bytes_of(p), _mm512_set1_epi32(15)))};
}
inline F32 load_high_nibbles(const uint8_t* p) {
  return {_mm512_cvtepi32_ps(_mm512_srli_epi32(widened_bytes_of(p), 4))};
}
#endif

// A panel of T already in pairs, widened.
template <class Element, class T>
void widen_panel(const T* panel, int64_t columns, Element* out) {
  for (int64_t i = 0; i < columns * kPanel; i += kLanes) store(out + i, load(panel + i));
}

// Four columns' weights k to k + 3 for each of the panel's 16 rows, 2 * kLanes at a time.
template <class Element, class At>
inline void store_fours(At at, Element* out) {
#pragma GCC unroll 4
  for (int64_t i = 0; i < 4 * kPanel; i += 2 * kLanes) {
    const F32 a = at(i), b = at(i + kLanes);
    store(out + i / 2, even_pairs(a, b));
    store(out + 2 * kPanel + i / 2, odd_pairs(a, b));
  }
}

template <class Element>
void unpack_int8_panel(const uint8_t* panel, int64_t columns, Element* out) {
  const F32 middle = splat(kInt8Zero);
  for (int64_t k = 0; k < columns; k += 4, panel += 4 * kPanel, out += 4 * kPanel) {
    store_fours([&](int64_t i) { return load(panel + i) - middle; }, out);
  }
}

// `first` is the first column, a multiple of kDepth; scales are the panel's, [K/128][16].
template <class Element>
void unpack_int4_panel(const uint8_t* panel, const float* scales, int64_t first, int64_t columns,
                       Element* out) {
  const F32 middle = splat(kInt4Zero);
  float fours[4 * kPanel];  // each row's scale four times
  for (int64_t k = 0; k < columns; k += 8, panel += 4 * kPanel, out += 8 * kPanel) {
    if (k == 0 || (first + k) % kGroup == 0) {
      const float* group = scales + (first + k) / kGroup * kPanel;
      for (int64_t i = 0; i < 4 * kPanel; ++i) fours[i] = group[i / 4];
    }
    store_fours([&](int64_t i) { return (load_low_nibbles(panel + i) - middle) * load(fours + i); },
                out);
    store_fours(
        [&](int64_t i) { return (load_high_nibbles(panel + i) - middle) * load(fours + i); },
        out + 4 * kPanel);
  }
}

// Columns [first, first + n) of a row in the row layout, as Element.
template <class Element>
void unpack_row(const Weights& w, int64_t row, int64_t first, int64_t n, Element* out) {
  float values[kMaxColumns];
  const auto copy = [&](auto* p) {
    for_lanes(n, [&](int64_t c, int64_t m) {
      const F32 v = m < kLanes ? load_some(p + c, m) : load(p + c);
      if (m < kLanes) {
        store_some(out + c, v, m);
      } else {
        store(out + c, v);
      }
    });
  };
  const int64_t start = row * w.row_stride;
  if (w.format == WeightFormat::floats) {
    if (w.dtype == DType::f32) return copy(static_cast<const float*>(w.data) + start + first);
    if (w.dtype == DType::f16) return copy(static_cast<const F16*>(w.data) + start + first);
    return copy(static_cast<const BF16*>(w.data) + start + first);
  }
  if (w.format == WeightFormat::int8) {
    const int8_t* q = static_cast<const int8_t*>(w.data) + start + first;
    for (int64_t i = 0; i < n; ++i) values[i] = static_cast<float>(q[i]);
  } else {
    const uint8_t* bytes = static_cast<const uint8_t*>(w.data) + start;
    const float* scales = w.scale + row * ((w.columns + kGroup - 1) / kGroup);
    for (int64_t i = 0; i < n; ++i) {
      const int64_t k = first + i;
      const int q = bytes[k / 2] >> (k % 2 * 4) & 15;
      values[i] = (static_cast<float>(q) - kInt4Zero) * scales[k / kGroup];
    }
  }
  copy(static_cast<const float*>(values));
}

// 16 rows of the row layout, as a panel; rows and columns that the matrix lacks are zeros.
template <class Element>
void unpack_rows(const Weights& w, int64_t panel, int64_t first, int64_t columns, Element* out) {
  if constexpr (kTransposes && __is_same(Element, BF16)) {
    if (w.format == WeightFormat::floats && w.dtype == DType::bf16) {
      return transpose_panel(w, panel, first, columns, out);
    }
  }
  Element line[kMaxColumns] = {};
  const int64_t rest = w.columns - first;
  const int64_t there = rest < columns ? rest : columns;
  for (int64_t c = 0; c < kPanel; ++c) {
    const int64_t row = panel * kPanel + c;
    if (row < w.rows) {
      if (there > 0) unpack_row(w, row, first, there, line);
    } else {
      __builtin_memset(line, 0, sizeof line);
    }
    for (int64_t k = 0; k < columns; k += 2) {
      __builtin_memcpy(out + k * kPanel + 2 * c, line + k, 2 * sizeof(Element));
    }
  }
}

// Bytes of `columns` columns of a packed panel, and where a panel begins.
inline int64_t panel_bytes(const Weights& w, int64_t columns) {
  if (w.format == WeightFormat::int4) return columns * kPanel / 2;
  if (w.format == WeightFormat::int8) return columns * kPanel;
  return columns * kPanel * (w.dtype == DType::f32 ? 4 : 2);
}

inline const char* panel_start(const Weights& w, int64_t panel) {
  const int64_t padded = w.format == WeightFormat::int4 ? w.row_stride * 2 : w.row_stride;
  return static_cast<const char*>(w.data) + panel * panel_bytes(w, padded);
}

template <class Element>
constexpr DType kDTypeOf = sizeof(Element) == 4 ? DType::f32 : DType::bf16;

// Columns [first, first + columns) of a panel, pairs of Element as weights.h orders floats. Both
// are multiples of kDepth. `scratch` has room for `columns` times kPanel.
template <class Element>
const Element* panel_at(const Weights& w, int64_t panel, int64_t first, int64_t columns,
                        Element* scratch) {
  if (!w.panels || w.columns == 0) {
    unpack_rows(w, panel, first, columns, scratch);
    return scratch;
  }
  // row_stride is the padded K, in int4 half of it, so this is the panel's first element or byte.
  const int64_t start = panel * kPanel * w.row_stride;
  switch (w.format) {
    case WeightFormat::floats: {
      const int64_t offset = start + first * kPanel;
      if (w.dtype == kDTypeOf<Element>) return static_cast<const Element*>(w.data) + offset;
      if (w.dtype == DType::f16) {
        widen_panel(static_cast<const F16*>(w.data) + offset, columns, scratch);
      } else {
        widen_panel(static_cast<const BF16*>(w.data) + offset, columns, scratch);
      }
      break;
    }
    case WeightFormat::int8:
      unpack_int8_panel(static_cast<const uint8_t*>(w.data) + start + first * kPanel, columns,
                        scratch);
      break;
    case WeightFormat::int4:
      unpack_int4_panel(static_cast<const uint8_t*>(w.data) + start + first * kPanel / 2,
                        w.scale + panel * kPanel * (w.row_stride * 2 / kGroup), first, columns,
                        scratch);
      break;
  }
  return scratch;
}

}  // namespace
}  // namespace flashvl::cpu::FLASHVL_LEVEL
