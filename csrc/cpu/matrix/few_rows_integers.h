// Few rows times int8 or int4 weights, in integers: exact sums over a group of 128 columns, scaled
// and added up in fp32.
#pragma once

#include "dot.h"
#include "few_rows_blocks.h"
#include "few_rows_integer_tiles.h"
#include "few_rows_quantised.h"

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

// Independent sums of one row and panel over a group: with few, one would wait on itself.
template <int R, int N>
constexpr int kSumsOf = R * N <= 2 ? 2 : 1;

// A group of N int8 panels, `steps` of 4 columns each, an even number.
template <int R, int N>
inline void add_group(const uint8_t* const (&w)[N], int steps, const QuantisedRows<R>& x,
                      int64_t at, Sums (&sums)[N][R][kSumsOf<R, N>]) {
  for (int j = 0; j < steps; j += 2) {
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) {
        if (N == 1) prefetch<kAhead>(w[n] + (j + i) * kStepBytes);
        const Bytes bytes = load_bytes(w[n] + (j + i) * kStepBytes);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          add_panel(sums[n][r][i % kSumsOf<R, N>], bytes, x.values[r] + at + four_at(j + i));
        }
      }
    }
  }
}

// A group of N int4 panels, in steps of 8 columns.
template <int R, int N>
inline void add_nibble_group(const uint8_t* const (&w)[N], const QuantisedRows<R>& x, int64_t at,
                             Sums (&sums)[N][R][kSumsOf<R, N>]) {
  for (int j = 0; j < kGroup / 8; ++j) {
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      if (N == 1) prefetch<kAhead>(w[n] + j * kStepBytes);
      const Bytes bytes = load_bytes(w[n] + j * kStepBytes);
      const Bytes low = low_nibbles(bytes), high = high_nibbles(bytes);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        add_panel(sums[n][r][0], low, x.values[r] + at + four_at(2 * j));
        add_panel(sums[n][r][kSumsOf<R, N> - 1], high, x.values[r] + at + four_at(2 * j + 1));
      }
    }
  }
}

// Panels [first, first + N) of the results, panel `panel` and those after it of the matrix.
template <WeightFormat format, int R, int N>
inline void integer_panels(const Weights& w, int64_t panel, const RowBlock& block, int first) {
  constexpr bool nibbles = format == WeightFormat::int4;
  constexpr int kSums = kSumsOf<R, N>;
  const QuantisedRows<R> x(w, block);
  const int64_t groups = (w.columns + kGroup - 1) / kGroup;
  const int64_t scale_stride = kPanel * (nibbles ? groups : 1);
  const uint8_t* data = static_cast<const uint8_t*>(w.data) + panel * kPanel * w.row_stride;
  const float* scale = w.scale + panel * scale_stride;
  F32 totals[N][R][kParts];
  for (int n = 0; n < N; ++n) {
    for (int r = 0; r < R; ++r) clear(totals[n][r]);
  }
  for (int64_t g = 0; g < groups; ++g) {
    const uint8_t* at[N];
    Sums sums[N][R][kSums];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      at[n] = data + n * kPanel * w.row_stride + g * kGroup * kPanel / (nibbles ? 2 : 1);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        for (Sums& sum : sums[n][r]) sum = start(0);
        sums[n][r][0] = start(x.offsets[r][g]);
      }
    }
    if (nibbles) {
      add_nibble_group<R, N>(at, x, 2 * kGroup * g, sums);
    } else {
      const int64_t left = w.row_stride - g * kGroup;
      const int steps = static_cast<int>((left < kGroup ? left : kGroup) / 4);
      add_group<R, N>(at, steps, x, 2 * kGroup * g, sums);
    }
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      const float* scales = scale + n * scale_stride + (nibbles ? g * kPanel : 0);
      if (nibbles && N == 1) prefetch<kAhead / 8>(scales);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        F32 sum[kParts];
        finish(kSums == 2 ? sums[n][r][0] + sums[n][r][kSums - 1] : sums[n][r][0], sum);
        for (int p = 0; p < kParts; ++p) {
          const F32 scaled = load(scales + p * kLanes) * splat(x.scales[r][g]);
          totals[n][r][p] = fma(sum[p], scaled, totals[n][r][p]);
        }
      }
    }
  }
  for (int n = 0; n < N; ++n) {
    for (int r = 0; r < R; ++r) block.put(first + n, r, totals[n][r]);
  }
}

// 128 columns of one row of weights, in two loads: x is prepared in the same two parts.
template <WeightFormat format>
inline void load_group(const uint8_t* row, int64_t columns, Bytes (&parts)[2]) {
  if (format == WeightFormat::int4) {
    const int64_t n = (columns + 1) / 2;
    const Bytes both = n < kStepBytes ? load_bytes(row, n) : load_bytes(row);
    parts[0] = low_nibbles(both);
    parts[1] = high_nibbles(both);
    return;
  }
  const int64_t n = columns < kStepBytes ? columns : kStepBytes;
  const int64_t rest = columns - n < kStepBytes ? columns - n : kStepBytes;
  parts[0] = flip_top(n < kStepBytes ? load_bytes(row, n) : load_bytes(row));
  parts[1] = flip_top(rest < kStepBytes ? load_bytes(row + n, rest) : load_bytes(row + n));
}

// One row of weights, whose results are among those of panel n.
template <WeightFormat format, int R>
inline void integer_row(const Weights& w, int64_t row, const QuantisedRows<R>& x,
                        const RowBlock& block, int n) {
  constexpr bool nibbles = format == WeightFormat::int4;
  const int64_t groups = (w.columns + kGroup - 1) / kGroup;
  const uint8_t* data = static_cast<const uint8_t*>(w.data) + row * w.row_stride;
  const float* scale = w.scale + row * (nibbles ? groups : 1);
  F32 totals[R][kParts];
  for (int r = 0; r < R; ++r) clear(totals[r]);
  for (int64_t g = 0; g < groups; ++g) {
    const uint8_t* group = data + g * (nibbles ? kGroup / 2 : kGroup);
    prefetch<kAhead>(group);
    if (!nibbles) prefetch<kAhead + kStepBytes>(group);
    Bytes parts[2];
    load_group<format>(group, w.columns - g * kGroup, parts);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      Sums sums = start_row(x.offsets[r][g]);
      add_row(sums, parts[0], x.values[r] + 2 * kGroup * g);
      add_row(sums, parts[1], x.values[r] + 2 * kGroup * g + kGroup);
      F32 sum[kParts];
      finish(sums, sum);
      const F32 scaled = splat(scale[nibbles ? g : 0] * x.scales[r][g]);
      for (int p = 0; p < kParts; ++p) totals[r][p] = fma(sum[p], scaled, totals[r][p]);
    }
  }
  for (int r = 0; r < R; ++r) {
    F32 total = totals[r][0];
    for (int p = 1; p < kParts; ++p) total = total + totals[r][p];
    block.put(n, r, row % kPanel, reduce_add(total));
  }
}

template <WeightFormat format, int R>
inline void integer_panel_of_rows(const Weights& w, int64_t panel, const RowBlock& block, int n) {
  const QuantisedRows<R> x(w, block);
  const int64_t first = panel * kPanel, count = rows_of(w, panel);
  for (int64_t row = first; row < first + count; ++row) {
    integer_row<format, R>(w, row, x, block, n);
  }
}

template <WeightFormat format>
inline void integer_dot(const Weights& w, Panels panels, const void* prepared, int rows,
                        float* out) {
  in_blocks(w, prepared, rows, out, [&](auto size, const RowBlock& block) {
    constexpr int R = decltype(size)::value;
    constexpr int kSums = format == WeightFormat::int4 ? kNibbleSums : kByteSums;
    in_groups<R, kSums>(panels.count, [&](auto group, int n) {
      constexpr int N = decltype(group)::value;
      const int64_t panel = panels.first + n;
      if (!w.panels) {
        for (int i = 0; i < N; ++i) integer_panel_of_rows<format, R>(w, panel + i, block, n + i);
        return;
      }
#if defined(FLASHVL_LEVEL_amx)
      if (R >= 4 && block.rows >= kFewestTileRows && w.columns % kGroup == 0) {
        return integer_panel_tiles<format>(w, panel, block, n);
      }
#endif
      integer_panels<format, R, N>(w, panel, block, n);
    });
  });
}

}  // namespace
}  // namespace flashvl::cpu::FLASHVL_LEVEL
