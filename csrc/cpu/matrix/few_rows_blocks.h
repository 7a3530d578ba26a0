// Rows of activations, some at a time: what the kernels of few_rows.h have in common.
#pragma once

#include "dot.h"
#include "few_rows_size.h"

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

// Bytes that weights are asked for ahead of their use where one panel is read at a time: 2 KiB are
// 2 % of a panel of 1536 columns, and take a core 150 ns or more to read, the latency of memory.
constexpr int64_t kAhead = 2048;

// Panels that some rows read at once, where registers hold `sums` sums of a row and a panel.
constexpr int panels_of_rows(int rows, int sums) {
  const int fit = rows < sums ? sums / rows : 1;
  return fit < kPanelsAtOnce ? fit : kPanelsAtOnce;
}

// Into the second-level cache, from where the processor itself fetches on; 2 to 6 % faster than
// into the first. Never faults, so it may reach past the end of the weights.
template <int64_t bytes>
inline void prefetch(const void* p) {
  __builtin_prefetch(reinterpret_cast<const char*>(reinterpret_cast<uintptr_t>(p) + bytes), 0, 2);
}

template <int count>
inline void clear(F32 (&sums)[count]) {
  for (F32& sum : sums) sum = zero();
}

// Neighbouring panels, at most kPanelsAtOnce of them.
struct Panels {
  int64_t first;
  int count;
};

// Those from `panel` on that `rows` rows read at once (of integers perhaps a few at a time), and
// none from `end` on.
inline Panels panels_from(int64_t panel, int64_t end, int rows) {
  const int most = panels_of_rows(rows, kFloatSums);
  return {panel, end - panel < most ? static_cast<int>(end - panel) : most};
}

// Results of panels_dot.
constexpr int64_t kPanelResults = kPanelsAtOnce * kFewRows * kPanel;

// Up to kRowsAtOnce prepared rows, and their 16 results each of every panel. Pointers from `rows`
// on repeat the last row, so that kernels exist for 1, 2, 4 and 8 rows only.
struct RowBlock {
  const void* x[kFewRows];
  int rows;
  float* out;

  // Row r of panel n.
  float* at(int n, int r) const { return out + (n * kFewRows + r) * kPanel; }

  void put(int n, int r, const F32 (&sums)[kParts]) const {
    if (r >= rows) return;
    for (int p = 0; p < kParts; ++p) store(at(n, r) + p * kLanes, sums[p]);
  }
  void put(int n, int r, int64_t column, float value) const {
    if (r < rows) at(n, r)[column] = value;
  }
};

template <int n>
struct Size {
  static constexpr int value = n;
};

template <class Kernel>
inline void in_blocks(const Weights& w, const void* prepared, int rows, float* out, Kernel kernel) {
  const int64_t stride = few_rows_bytes(w);
  for (int first = 0; first < rows; first += kRowsAtOnce) {
    RowBlock block;
    block.rows = rows - first < kRowsAtOnce ? rows - first : kRowsAtOnce;
    block.out = out + first * kPanel;
    for (int r = 0; r < kFewRows; ++r) {
      const int row = first + (r < block.rows ? r : block.rows - 1);
      block.x[r] = static_cast<const char*>(prepared) + row * stride;
    }
    if (block.rows == 1) {
      kernel(Size<1>{}, block);
    } else if (block.rows == 2) {
      kernel(Size<2>{}, block);
    } else if (block.rows <= 4) {
      kernel(Size<4>{}, block);
    } else {
      kernel(Size<kRowsAtOnce>{}, block);
    }
  }
}

// kernel(Size<N>{}, n) for the panels from n on, of those that R rows take: N at once, then one by
// one.
template <int R, int kSums, class Kernel>
inline void in_groups(int count, Kernel kernel) {
  constexpr int kAtOnce = panels_of_rows(R, kSums);
  int n = 0;
  if constexpr (kAtOnce > 1) {
    for (; n + kAtOnce <= count; n += kAtOnce) kernel(Size<kAtOnce>{}, n);
  }
  for (; n < count; ++n) kernel(Size<1>{}, n);
}

// Rows of the matrix in a panel: 16 but at the end of a row layout.
inline int64_t rows_of(const Weights& w, int64_t panel) {
  const int64_t left = w.rows - panel * kPanel;
  return left < kPanel ? left : kPanel;
}

}  // namespace
}  // namespace flashvl::cpu::FLASHVL_LEVEL
