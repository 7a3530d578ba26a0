// The matrix product of linear, swiglu_mlp and gelu_mlp for 1 to 8 rows: bound by the bytes of the
// weights (few_rows.h). A task owns a range of panels.
#pragma once

#include "epilogue.h"
#include "few_rows.h"
#include "normalised_row.h"
#include "product_parts.h"
#include "row_layout.h"

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

inline ProductPlan plan_few(const ProductArgs& args) {
  ProductPlan plan = {};
  plan.few = true;
  plan.units = panels_of(args.w);
  plan.tasks = args.threads < plan.units ? args.threads : plan.units;
  plan.row_parts = 1;
  plan.packed_rows = args.rows;
  // Behind the prepared rows there is room for one row in fp32.
  const int64_t row = args.w.columns * static_cast<int64_t>(sizeof(float));
  plan.packed_bytes = args.rows * few_rows_bytes(args.w) + round_up(row, kLine);
  return plan;
}

template <class T>
void pack_few(const PackArgs& args) {
  const int64_t columns = args.w.columns, bytes = few_rows_bytes(args.w);
  char* prepared = static_cast<char*>(args.packed);
  float* values = reinterpret_cast<float*>(prepared + args.rows * bytes);
  const T* weight = static_cast<const T*>(args.norm_weight);
  const T* bias = static_cast<const T*>(args.norm_bias);
  for (int64_t r = 0; r < args.rows; ++r) {
    if (args.floats) {
      const float* x = static_cast<const float*>(args.x) + r * args.x_stride;
      prepare_row(args.w, args.dtype, x, prepared + r * bytes);
      continue;
    }
    const T* x = static_cast<const T*>(args.x) + r * args.x_stride;
    const NormalisedRow<T> row(x, columns, weight, bias, args.eps);
    for_lanes(columns, [&](int64_t c, int64_t n) { store_up_to(values + c, row.at(c, n), n); });
    prepare_row(args.w, args.dtype, values, prepared + r * bytes);
  }
}

template <class T>
void product_few(const ProductArgs& args, int64_t task) {
  const Range range(args.plan.units, task, args.plan.tasks);
  const int rows = static_cast<int>(args.rows);
  float sums[kPanelResults], up[kPanelResults];
  for (int64_t panel = range.begin; panel < range.end;) {
    const Panels panels = panels_from(panel, range.end, rows);
    panels_dot(args.w, args.dtype, panels, args.packed, rows, sums);
    if (is_gated(args)) panels_dot(args.up, args.dtype, panels, args.packed, rows, up);
    for (int64_t n = 0; n < panels.count; ++n, ++panel) {
      const Finish<T, float, RowLayout<1>> finish(args, {}, panel, 1);
      finish(0, rows, [&](int64_t r, int, int j) {
        return (j == 0 ? sums : up) + (n * kFewRows + r) * kPanel;
      });
    }
  }
}

}  // namespace
}  // namespace flashvl::cpu::FLASHVL_LEVEL
