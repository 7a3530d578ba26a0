// The rows that rms_norm and layer_norm read: x, or x + residual kept for the next layer.
#pragma once

#include "columns.h"

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

// What is normalised: `values` after `sum_at` has gone over every column.
template <class T>
struct NormRow {
  const T* x;
  const T* residual;  // null: no residual
  T* total;
  const T* values;  // total, or x without a residual
  const T* next;    // x of the next row, fetched while this one is written
};

template <class T, class Args>
inline NormRow<T> norm_row(const Args& args, int64_t r) {
  const T* x = static_cast<const T*>(args.x) + r * args.x_stride;
  if (args.residual == nullptr) return {x, nullptr, nullptr, x, x + args.x_stride};
  T* total = static_cast<T*>(args.total) + r * args.columns;
  const T* residual = static_cast<const T*>(args.residual) + r * args.residual_stride;
  return {x, residual, total, total, x + args.x_stride};
}

// x + residual rounded to T, which it writes to total; x itself without a residual.
template <class T, class Count>
inline F32 sum_at(const NormRow<T>& row, int64_t c, Count n) {
  if (row.residual == nullptr) return load_at(row.x + c, n);
  const F32 sum = round_to<T>(load_at(row.x + c, n) + load_at(row.residual + c, n));
  store_at(row.total + c, sum, n);
  return sum;
}

}  // namespace
}  // namespace flashvl::cpu::FLASHVL_LEVEL
