// The rows of rms_norm and layer_norm: x, or x + residual kept for the next layer, normalised.
//
// Memory is passed over once: every sweep over a row but the first finds it in the first-level
// cache (a row of 1536 bf16 values is 3 KiB), and the last one fetches the next row, so that
// reading goes on while it computes.
#pragma once

#include "row_norm.h"

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

// x + residual, rounded to T.
template <class T>
inline void add_rows(const T* x, const T* residual, T* total, int64_t columns) {
  over_pairs(
      columns,
      [&](int64_t c) {
        const Two a = load_two(x + c), b = load_two(residual + c);
        store_two(total + c, {a.a + b.a, a.b + b.b});
      },
      [&](int64_t c, auto n) {
        store_at(total + c, load_at(x + c, n) + load_at(residual + c, n), n);
      });
}

// Rows [begin, end) of an op whose arguments are those of rms_norm or layer_norm.
template <class T, class Args>
inline void normalise_rows(const Args& args, const T* bias, int64_t begin, int64_t end) {
  const RowNorm<T> norm = {static_cast<const T*>(args.weight), bias, args.eps};
  for (int64_t r = begin; r < end; ++r) {
    const T* x = static_cast<const T*>(args.x) + r * args.x_stride;
    const T* values = x;
    if (args.residual != nullptr) {
      T* total = static_cast<T*>(args.total) + r * args.columns;
      const T* residual = static_cast<const T*>(args.residual) + r * args.residual_stride;
      add_rows(x, residual, total, args.columns);
      values = total;
    }
    const RowMoments row = moments_of(&values, 1, args.columns, bias != nullptr, args.eps);
    T* y = static_cast<T*>(args.y) + r * args.columns;
    scale_piece(values, y, 0, args.columns, norm, row, x + args.x_stride);
  }
}

}  // namespace
}  // namespace flashvl::cpu::FLASHVL_LEVEL
