// Products of 1 to 8 rows of activations with a weight matrix, 16 outputs at a time: what decoding
// does. Bound by the bytes of the weights: each is read once, in order, and used for all rows.
//
//   few_rows_bytes(w)                     of one prepared row
//   prepare_row(w, dtype, x, prepared)    x: w.columns fp32 values, already rounded to dtype
//   panels_dot(w, dtype, panels, prepared, rows, out)
//                                         out[(n * kFewRows + r) * 16 + c] = row r times row c of
//                                         panel panels.first + n, in fp32 with the scales applied;
//                                         zero beyond w.rows
//   panels_from(panel, end, rows)         as many as it takes at once, none from `end` on
//
// Prepared rows lie few_rows_bytes(w) apart, aligned to 64. At level amx panels_dot uses the tile
// registers: call it outside of any scope of Tiles. docs/ladders/few_rows.md has the
// versions tried and their figures.
#pragma once

#include "few_rows_floats.h"
#include "few_rows_integers.h"
#include "few_rows_prepare.h"
#include "few_rows_size.h"
#include "few_rows_tiles.h"
#include "few_rows_widened.h"

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

inline void prepare_row(const Weights& w, DType dtype, const float* x, void* prepared) {
  if (w.format != WeightFormat::floats) {
    char* row = static_cast<char*>(prepared);
    const bool quantised = dtype != DType::f32 && quantise_row(w, x, row);
    if (!quantised) widen_row(w, x, row);
    *static_cast<int32_t*>(prepared) = quantised ? 1 : 0;
    return;
  }
  const int64_t padded = (w.columns + kDepth - 1) / kDepth * kDepth;
  if (dtype == DType::bf16) {
    using X = RowStep<BF16>::X;
    return copy_padded(x, w.columns, padded, static_cast<X*>(prepared));
  }
  copy_padded(x, w.columns, padded, static_cast<float*>(prepared));
}

inline bool is_quantised(const Weights& w, const void* prepared, int row) {
  const char* at = static_cast<const char*>(prepared) + row * few_rows_bytes(w);
  return *reinterpret_cast<const int32_t*>(at) != 0;
}

inline void integers_dot(const Weights& w, Panels panels, const void* prepared, int rows,
                         float* out) {
  const char* row = static_cast<const char*>(prepared);
  int first = 0;
  while (first < rows) {
    int end = first;
    while (end < rows && is_quantised(w, prepared, end)) ++end;
    if (end == first) {
      for (int n = 0; n < panels.count; ++n) {
        widened_dot(w, panels.first + n, row + first * few_rows_bytes(w),
                    out + (n * kFewRows + first) * kPanel);
      }
      ++first;
      continue;
    }
    const void* run = row + first * few_rows_bytes(w);
    if (w.format == WeightFormat::int8) {
      integer_dot<WeightFormat::int8>(w, panels, run, end - first, out + first * kPanel);
    } else {
      integer_dot<WeightFormat::int4>(w, panels, run, end - first, out + first * kPanel);
    }
    first = end;
  }
}

inline void panels_dot(const Weights& w, DType dtype, Panels panels, const void* prepared, int rows,
                       float* out) {
  if (rows_of(w, panels.first + panels.count - 1) < kPanel) {
    for (int64_t i = 0; i < panels.count * kFewRows * kPanel; ++i) out[i] = 0.0f;
  }
  if (w.format != WeightFormat::floats) return integers_dot(w, panels, prepared, rows, out);
  switch (dtype) {
    case DType::f32:
      return float_dot<float>(w, panels, prepared, rows, out);
    case DType::bf16:
#if defined(FLASHVL_LEVEL_amx)
      if (w.panels && rows >= kFewestTileRows) return tiles_dot(w, panels, prepared, rows, out);
#endif
      return float_dot<BF16>(w, panels, prepared, rows, out);
    case DType::f16:
      return float_dot<F16>(w, panels, prepared, rows, out);
  }
}

}  // namespace
}  // namespace flashvl::cpu::FLASHVL_LEVEL
