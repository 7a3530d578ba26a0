// The derivative of RMSNorm and LayerNorm of one row, in two sweeps over the first-level cache.
//
// With u the normalised row and g the gradient of the result times the weight: dx = scale (g -
// mean(g u) u), LayerNorm takes mean(g) off as well. Sums over rows (dweight, dbias) are kept in
// fp32 for 16 rows and then go to double: a chain of thousands of fp32 additions would be several
// times worse than PyTorch's sum in a cascade.
#pragma once

#include "columns.h"
#include "row_norm.h"

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

// Sums of rows, column by column: `some` and `whole` have room for `columns`.
struct ColumnSums {
  float* some;
  double* whole;
  int64_t columns;
  int rows = 0;

  static constexpr int kSome = 16;

  static int64_t bytes(int64_t columns) {
    const int64_t padded = (columns + 15) / 16 * 16;
    return padded * static_cast<int64_t>(sizeof(float) + sizeof(double));
  }

  void start(void* memory, int64_t count) {
    columns = count;
    whole = static_cast<double*>(memory);
    some = reinterpret_cast<float*>(whole + (columns + 15) / 16 * 16);
    rows = 0;
    for (int64_t c = 0; c < columns; ++c) {
      whole[c] = 0.0;
      some[c] = 0.0f;
    }
  }
  void end_row() {
    if (++rows == kSome) flush();
  }
  void flush() {
    rows = 0;
    for (int64_t c = 0; c < columns; ++c) {
      whole[c] += static_cast<double>(some[c]);
      some[c] = 0.0f;
    }
  }
};

template <class Count>
inline void add_at(float* sums, F32 values, Count n) {
  store_at(sums, load_at(sums, n) + values, n);
}

template <class T>
struct NormBackwardRow {
  const T* grad;  // of the result
  const T* x;     // what was normalised
  const T* weight;
  bool layer;
  float eps;
  const T* add;  // or null: another gradient of x
  T* dx;         // or null; may be grad itself
};

template <class T>
inline void norm_backward_row(const NormBackwardRow<T>& row, int64_t columns, ColumnSums& dweight,
                              ColumnSums* dbias) {
  const RowMoments moments = moments_of(&row.x, 1, columns, row.layer, row.eps);
  const F32 centre = splat(moments.centre), scale = splat(moments.scale);
  const F32 shift = splat(moments.shift);
  const auto unit_at = [&](int64_t c, auto n) {
    return fma(load_at(row.x + c, n) - centre, scale, shift);
  };
  const Deviations sums = sum_columns<Deviations>(columns, [&](Deviations sum, int64_t c, auto n) {
    const F32 grad = load_at(row.grad + c, n), unit = unit_at(c, n);
    const F32 g = grad * load_at(row.weight + c, n);
    add_at(dweight.some + c, grad * (row.layer ? unit : round_to<T>(unit)), n);
    if (dbias != nullptr) add_at(dbias->some + c, grad, n);
    return Deviations{sum.sum + g, fma(g, unit, sum.squares)};
  });
  dweight.end_row();
  if (dbias != nullptr) dbias->end_row();
  if (row.dx == nullptr) return;
  const float count = static_cast<float>(columns);
  const F32 along = splat(reduce_add(sums.squares) / count);
  const F32 mean = row.layer ? splat(reduce_add(sums.sum) / count) : zero();
  over_columns(columns, [&](int64_t c, auto n) {
    const F32 g = load_at(row.grad + c, n) * load_at(row.weight + c, n) - mean;
    F32 dx = scale * (g - along * unit_at(c, n));
    if (row.add != nullptr) dx = dx + load_at(row.add + c, n);
    store_at(row.dx + c, dx, n);
  });
}

}  // namespace
}  // namespace flashvl::cpu::FLASHVL_LEVEL
