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

// Adds kBlockSteps steps from column `first` on to the totals of N panels. Independent chains cover
// the latency of the products where there are few sums; with panels side by side there are enough.
template <class T, int R, int N>
inline void add_block(const T* const (&w)[N], const typename PanelStep<T>::X* const (&x)[R],
                      int64_t first, F32 (&totals)[N][R][kParts]) {
  constexpr int kChains = R >= 4 || kPanelsAtOnce > 1 ? 1 : 4 / R;
  F32 sums[kChains][N][R][kParts];
  for (int c = 0; c < kChains; ++c) {
    for (int n = 0; n < N; ++n) {
      for (int r = 0; r < R; ++r) clear(sums[c][n][r]);
    }
  }
  for (int j = 0; j < kBlockSteps; j += kChains) {
#pragma GCC unroll 4
    for (int c = 0; c < kChains; ++c) {
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) {
        const T* at = w[n] + first * kPanel + (j + c) * 2 * kPanel;
        if (N == 1) {
          prefetch<kAhead>(at);
          if (sizeof(T) == 4) prefetch<kAhead + kStepBytes>(at);
        }
        PanelStep<T> step;
        step.load(at);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) step.add(sums[c][n][r], x[r] + first + 2 * (j + c));
      }
    }
  }
#pragma GCC unroll 4
  for (int n = 0; n < N; ++n) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      for (int p = 0; p < kParts; ++p) {
        F32 sum = sums[0][n][r][p];
        for (int c = 1; c < kChains; ++c) sum = sum + sums[c][n][r][p];
        totals[n][r][p] = totals[n][r][p] + sum;
      }
    }
  }
}

// Panels [first, first + N) of those at w, `stride` elements a row of the matrix.
template <class T, int R, int N>
inline void float_panels(const T* data, int64_t stride, const RowBlock& block, int first) {
  using X = typename PanelStep<T>::X;
  F32 totals[N][R][kParts];
  const T* w[N];
  for (int n = 0; n < N; ++n) w[n] = data + (first + n) * kPanel * stride;
  const X* x[R];
  for (int r = 0; r < R; ++r) {
    x[r] = static_cast<const X*>(block.x[r]);
    for (int n = 0; n < N; ++n) clear(totals[n][r]);
  }
  for (int64_t c = 0; c < stride; c += kDepth) add_block<T, R, N>(w, x, c, totals);
  for (int n = 0; n < N; ++n) {
    for (int r = 0; r < R; ++r) block.put(first + n, r, totals[n][r]);
  }
}

// `count` rows of weights from row `first` of a panel on, `stride` elements apart, with every row
// of activations.
template <class T, int R, int count>
inline void float_rows(const T* w, int64_t stride, int64_t columns, const RowBlock& block,
                       int panel, int64_t first) {
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
    for (int r = 0; r < R; ++r) block.put(panel, r, first + n, reduce_add(sums[r][n]));
  }
}

// A panel of a matrix in rows, whose results are those of panel n.
template <class T, int R>
inline void float_panel_of_rows(const Weights& w, int64_t panel, const RowBlock& block, int n) {
  // Weight rows at once: enough sums to cover the latency, few enough to stay in registers.
  constexpr int kAtOnce = R <= 2 ? 4 : 2;
  const T* data = static_cast<const T*>(w.data) + panel * kPanel * w.row_stride;
  const int64_t end = rows_of(w, panel);
  int64_t row = 0;
  for (; row + kAtOnce <= end; row += kAtOnce) {
    float_rows<T, R, kAtOnce>(data + row * w.row_stride, w.row_stride, w.columns, block, n, row);
  }
  for (; row < end; ++row) {
    float_rows<T, R, 1>(data + row * w.row_stride, w.row_stride, w.columns, block, n, row);
  }
}

template <class T>
inline void float_dot(const Weights& w, Panels panels, const void* prepared, int rows, float* out) {
  const T* data = static_cast<const T*>(w.data) + panels.first * kPanel * w.row_stride;
  in_blocks(w, prepared, rows, out, [&](auto size, const RowBlock& block) {
    constexpr int R = decltype(size)::value;
    if (!w.panels) {
      for (int n = 0; n < panels.count; ++n) {
        float_panel_of_rows<T, R>(w, panels.first + n, block, n);
      }
      return;
    }
    in_groups<R, kFloatSums>(panels.count, [&](auto group, int n) {
      float_panels<T, R, decltype(group)::value>(data, w.row_stride, block, n);
    });
  });
}

}  // namespace
}  // namespace flashvl::cpu::FLASHVL_LEVEL
