// Three to eight rows times an int8 or int4 panel in tile registers, at level amx.
//
// 64 columns of a panel are a tile of weights as they lie, and the high and the low parts of the
// activations are two tiles of up to eight rows: four instructions do what vpdpbusd takes 16 a line
// for. A group's sums are exact in int32, and go through memory to be scaled.
#pragma once

#if defined(FLASHVL_LEVEL_amx)

#include "dot.h"
#include "few_rows_blocks.h"
#include "few_rows_quantised.h"
#include "few_rows_tiles.h"
#include "tile.h"

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

constexpr int64_t kTileColumns = 64;  // of an operand of 8 bits

// 128 columns as two tiles of weights: int8 as they are, int4 unpacked into `unpacked`.
template <WeightFormat format>
inline const uint8_t* group_tiles(const uint8_t* w, uint8_t* unpacked) {
  constexpr bool nibbles = format == WeightFormat::int4;
  constexpr int kLines = nibbles ? kGroup / 8 : kGroup / 4;
#pragma GCC unroll 32
  for (int line = 0; line < kLines; ++line) prefetch<kAhead>(w + line * kStepBytes);
  if (!nibbles) return w;
#pragma GCC unroll 4
  for (int line = 0; line < kLines; ++line) {
    const Bytes bytes = load_bytes(w + line * kStepBytes);
    store_bytes(unpacked + 2 * line * kStepBytes, low_nibbles(bytes));
    store_bytes(unpacked + (2 * line + 1) * kStepBytes, high_nibbles(bytes));
  }
  return unpacked;
}

// Sums over one group, high parts in tile `high` and low parts in the next.
template <int high>
inline void multiply_group(const uint8_t* weights, const uint8_t* x, int64_t x_stride) {
  tile_zero<high>();
  tile_zero<high + 1>();
  for (int64_t half = 0; half < 2; ++half) {
    tile_load<6>(weights + half * kTileRows * kTileBytes, kTileBytes);
    tile_load<4>(x + half * 2 * kTileColumns, x_stride);
    tile_load<5>(x + half * 2 * kTileColumns + kTileColumns, x_stride);
    tile_dot_bytes<high, 4, 6>();
    tile_dot_bytes<high + 1, 5, 6>();
  }
}

template <int high>
inline void add_group(const QuantisedRows<kFewRows>& x, int rows, int64_t group,
                      const float* scales, int32_t (&sums)[2][kFewRows * kPanel],
                      F32 (&totals)[kFewRows]) {
  tile_store<high>(sums[0], kTileBytes);
  tile_store<high + 1>(sums[1], kTileBytes);
  const F32 scale = load(scales);
#pragma GCC unroll 8
  for (int r = 0; r < kFewRows; ++r) {
    if (r >= rows) break;
    const F32 sum = joined(sums[0] + r * kPanel, sums[1] + r * kPanel, x.offsets[r][group]);
    totals[r] = fma(sum, scale * splat(x.scales[r][group]), totals[r]);
  }
}

// A panel whose results are those of panel n. The columns are whole groups.
template <WeightFormat format>
inline void integer_panel_tiles(const Weights& w, int64_t panel, const RowBlock& block, int n) {
  constexpr bool nibbles = format == WeightFormat::int4;
  constexpr int64_t kBytes = nibbles ? kGroup * kPanel / 2 : kGroup * kPanel;
  const QuantisedRows<kFewRows> x(w, block);
  const int64_t groups = w.columns / kGroup, x_stride = few_rows_bytes(w);
  const uint8_t* data = static_cast<const uint8_t*>(w.data) + panel * groups * kBytes;
  const float* scale = w.scale + panel * kPanel * (nibbles ? groups : 1);
  alignas(64) uint8_t unpacked[2][kGroup * kPanel];
  alignas(64) int32_t sums[2][2][kFewRows * kPanel];
  F32 totals[kFewRows];
  clear(totals);
  const Tiles tiles(block.rows);
  const auto multiply = [&](auto high, int64_t g) {
    constexpr int t = decltype(high)::value;
    const uint8_t* weights = group_tiles<format>(data + g * kBytes, unpacked[t / 2]);
    multiply_group<t>(weights, x.values[0] + 2 * kGroup * g, x_stride);
    if (nibbles) prefetch<kAhead / 8>(scale + g * kPanel);
  };
  const auto add = [&](auto high, int64_t g) {
    constexpr int t = decltype(high)::value;
    const float* scales = scale + (nibbles ? g * kPanel : 0);
    add_group<t>(x, block.rows, g, scales, sums[t / 2], totals);
  };
  // A group is scaled while the tiles work on the next.
  multiply(Size<0>{}, 0);
  int64_t g = 0;
  for (; g + 2 < groups; g += 2) {
    multiply(Size<2>{}, g + 1);
    add(Size<0>{}, g);
    multiply(Size<0>{}, g + 2);
    add(Size<2>{}, g + 1);
  }
  if (g + 1 < groups) multiply(Size<2>{}, g + 1);
  add(Size<0>{}, g);
  if (g + 1 < groups) add(Size<2>{}, g + 1);
  for (int r = 0; r < block.rows; ++r) store(block.at(n, r), totals[r]);
}

}  // namespace
}  // namespace flashvl::cpu::FLASHVL_LEVEL

#endif
