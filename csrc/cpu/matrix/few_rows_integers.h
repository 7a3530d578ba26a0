// Few rows times int8 or int4 weights, in integers: exact sums over a group of 128 columns, scaled
// and added up in fp32.
#pragma once

#include "dot.h"
#include "few_rows_blocks.h"
#include "few_rows_integer_tiles.h"
#include "few_rows_quantised.h"

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

// Independent sums of one row over a group: with few rows, one would wait on itself.
template <int R>
constexpr int kSumsOf = R <= 2 ? 2 : 1;

// A group of an int8 panel, `steps` of 4 columns each, an even number.
template <int R>
inline void add_group(const uint8_t* w, int steps, const QuantisedRows<R>& x, int64_t at,
                      Sums (&sums)[R][kSumsOf<R>]) {
  for (int j = 0; j < steps; j += 2) {
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      prefetch<kAhead>(w + (j + i) * kStepBytes);
      const Bytes bytes = load_bytes(w + (j + i) * kStepBytes);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        add_panel(sums[r][i % kSumsOf<R>], bytes, x.values[r] + at + four_at(j + i));
      }
    }
  }
}

// A group of an int4 panel, in steps of 8 columns.
template <int R>
inline void add_nibble_group(const uint8_t* w, const QuantisedRows<R>& x, int64_t at,
                             Sums (&sums)[R][kSumsOf<R>]) {
  for (int j = 0; j < kGroup / 8; ++j) {
    prefetch<kAhead>(w + j * kStepBytes);
    const Bytes bytes = load_bytes(w + j * kStepBytes);
    const Bytes low = low_nibbles(bytes), high = high_nibbles(bytes);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      add_panel(sums[r][0], low, x.values[r] + at + four_at(2 * j));
      add_panel(sums[r][kSumsOf<R> - 1], high, x.values[r] + at + four_at(2 * j + 1));
    }
  }
}

template <WeightFormat format, int R>
inline void integer_panel(const Weights& w, int64_t panel, const RowBlock& block) {
  constexpr bool nibbles = format == WeightFormat::int4;
  const QuantisedRows<R> x(w, block);
  const int64_t groups = (w.columns + kGroup - 1) / kGroup;
  const uint8_t* data = static_cast<const uint8_t*>(w.data) + panel * kPanel * w.row_stride;
  const float* scale = w.scale + panel * kPanel * (nibbles ? groups : 1);
  F32 totals[R][kParts];
  for (int r = 0; r < R; ++r) clear(totals[r]);
  for (int64_t g = 0; g < groups; ++g) {
    Sums sums[R][kSumsOf<R>];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      for (Sums& sum : sums[r]) sum = start(0);
      sums[r][0] = start(x.offsets[r][g]);
    }
    if (nibbles) {
      add_nibble_group<R>(data + g * kGroup * kPanel / 2, x, 2 * kGroup * g, sums);
    } else {
      const int64_t left = w.row_stride - g * kGroup;
      const int steps = static_cast<int>((left < kGroup ? left : kGroup) / 4);
      add_group<R>(data + g * kGroup * kPanel, steps, x, 2 * kGroup * g, sums);
    }
    const float* scales = scale + (nibbles ? g * kPanel : 0);
    if (nibbles) prefetch<kAhead / 8>(scales);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      F32 sum[kParts];
      finish(kSumsOf<R> == 2 ? sums[r][0] + sums[r][kSumsOf<R> - 1] : sums[r][0], sum);
      for (int p = 0; p < kParts; ++p) {
        const F32 scaled = load(scales + p * kLanes) * splat(x.scales[r][g]);
        totals[r][p] = fma(sum[p], scaled, totals[r][p]);
      }
    }
  }
  for (int r = 0; r < R; ++r) block.put(r, totals[r]);
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

// One row of weights.
template <WeightFormat format, int R>
inline void integer_row(const Weights& w, int64_t row, const QuantisedRows<R>& x,
                        const RowBlock& block) {
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
    block.put(r, row % kPanel, reduce_add(total));
  }
}

template <WeightFormat format>
inline void integer_dot(const Weights& w, int64_t panel, const void* prepared, int rows,
                        float* out) {
  in_blocks(w, prepared, rows, out, [&](auto size, const RowBlock& block) {
    constexpr int R = decltype(size)::value;
    if (w.panels) {
#if defined(FLASHVL_LEVEL_amx)
      if (R >= 4 && block.rows >= kFewestTileRows && w.columns % kGroup == 0) {
        return integer_panel_tiles<format>(w, panel, block);
      }
#endif
      return integer_panel<format, R>(w, panel, block);
    }
    const QuantisedRows<R> x(w, block);
    const int64_t first = panel * kPanel, count = rows_of(w, panel);
    for (int64_t n = first; n < first + count; ++n) integer_row<format, R>(w, n, x, block);
  });
}

}  // namespace
}  // namespace flashvl::cpu::FLASHVL_LEVEL
