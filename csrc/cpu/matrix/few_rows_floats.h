// Few rows times float weights: 16 outputs from a panel, or from 16 rows as they lie.
#pragma once

#include "dot.h"
#include "few_rows_blocks.h"

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

// Steps whose products are added up before they join the totals. One running sum over 8960 columns
// would err five times as much as sums over 32 and their sum: rounding errors grow with the size
// of what they are added to.
constexpr int kBlockSteps = kDepth / 2;

// Adds kBlockSteps steps from column `first` on to the totals. Independent chains cover the
// latency of the products where there are few rows.
template <class T, int R>
inline void add_block(const T* w, const typename PanelStep<T>::X* const (&x)[R], int64_t first,
                      F32 (&totals)[R][kParts]) {
  constexpr int kChains = R >= 4 ? 1 : 4 / R;
  F32 sums[kChains][R][kParts];
  for (int c = 0; c < kChains; ++c) {
    for (int r = 0; r < R; ++r) clear(sums[c][r]);
  }
  for (int j = 0; j < kBlockSteps; j += kChains) {
#pragma GCC unroll 4
    for (int c = 0; c < kChains; ++c) {
      const T* at = w + (j + c) * 2 * kPanel;
      prefetch<kAhead>(at);
      if (sizeof(T) == 4) prefetch<kAhead + kStepBytes>(at);
      PanelStep<T> step;
      step.load(at);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) step.add(sums[c][r], x[r] + first + 2 * (j + c));
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    for (int p = 0; p < kParts; ++p) {
      F32 sum = sums[0][r][p];
      for (int c = 1; c < kChains; ++c) sum = sum + sums[c][r][p];
      totals[r][p] = totals[r][p] + sum;
    }
  }
}

template <class T, int R>
inline void float_panel(const T* w, int64_t columns, const RowBlock& block) {
  using X = typename PanelStep<T>::X;
  F32 totals[R][kParts];
  const X* x[R];
  for (int r = 0; r < R; ++r) {
    x[r] = static_cast<const X*>(block.x[r]);
    clear(totals[r]);
  }
  for (int64_t c = 0; c < columns; c += kDepth) add_block<T, R>(w + c * kPanel, x, c, totals);
  for (int r = 0; r < R; ++r) block.put(r, totals[r]);
}

// `count` rows of weights, `stride` elements apart, with every row of activations.
template <class T, int R, int count>
inline void float_rows(const T* w, int64_t stride, int64_t columns, const RowBlock& block,
                       int64_t first) {
  using Step = RowStep<T>;
  F32 sums[R][count];
  const typename Step::X* x[R];
  for (int r = 0; r < R; ++r) {
    x[r] = static_cast<const typename Step::X*>(block.x[r]);
    clear(sums[r]);
  }
  int64_t c = 0;
  for (; c + Step::kWidth <= columns; c += Step::kWidth) {
#pragma GCC unroll 4
    for (int n = 0; n < count; ++n) {
      Step step;
      prefetch<0>(w + (n + count) * stride + c);
      step.load(w + n * stride + c);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) step.add(sums[r][n], x[r] + c);
    }
  }
  for (int n = 0; n < count && c < columns; ++n) {
    Step step;
    step.load_some(w + n * stride + c, columns - c);
    for (int r = 0; r < R; ++r) step.add(sums[r][n], x[r] + c);
  }
  for (int n = 0; n < count; ++n) {
    for (int r = 0; r < R; ++r) block.put(r, first + n, reduce_add(sums[r][n]));
  }
}

template <class T>
inline void float_dot(const Weights& w, int64_t panel, const void* prepared, int rows, float* out) {
  const T* data = static_cast<const T*>(w.data) + panel * kPanel * w.row_stride;
  in_blocks(w, prepared, rows, out, [&](auto size, const RowBlock& block) {
    constexpr int R = decltype(size)::value;
    if (w.panels) return float_panel<T, R>(data, w.row_stride, block);
    // Weight rows at once: enough sums to cover the latency, few enough to stay in registers.
    constexpr int kAtOnce = R <= 2 ? 4 : 2;
    const int64_t end = rows_of(w, panel);
    int64_t n = 0;
    for (; n + kAtOnce <= end; n += kAtOnce) {
      float_rows<T, R, kAtOnce>(data + n * w.row_stride, w.row_stride, w.columns, block, n);
    }
    for (; n < end; ++n) {
      float_rows<T, R, 1>(data + n * w.row_stride, w.row_stride, w.columns, block, n);
    }
  });
}

}  // namespace
}  // namespace flashvl::cpu::FLASHVL_LEVEL
