// Three to eight bf16 rows times a bf16 panel in tile registers, at level amx.
//
// Eight vdpbf16ps a load take 13 of the 14 cycles in which memory delivers it to one of two cores;
// a tile instruction does sixteen loads in 16 cycles, and memory is the limit again.
#pragma once

#if defined(FLASHVL_LEVEL_amx)

#include "few_rows_blocks.h"
#include "tile.h"

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

constexpr int kFewestTileRows = 3;

// Tiles hold: 0 and 1 the sums over even and odd blocks of 32 columns, 4 and 5 activations, 6 and 7
// weights. The first six have as many rows as there are activations, so none past them is read.
template <int sums, int x_tile, int w_tile>
inline void add_tile(const BF16* w, const BF16* x, int64_t x_stride) {
#pragma GCC unroll 16
  for (int line = 0; line < kTileRows; ++line) prefetch<kAhead>(w + line * kTileDepth);
  tile_load<x_tile>(x, x_stride);
  tile_load<w_tile>(w, kTileBytes);
  tile_dot_bf16<sums, x_tile, w_tile>();
}

inline void panel_tiles(const Weights& w, int64_t panel, const void* prepared, int rows,
                        float* out) {
  const BF16* data = static_cast<const BF16*>(w.data) + panel * kPanel * w.row_stride;
  const BF16* x = static_cast<const BF16*>(prepared);
  const int64_t x_stride = few_rows_bytes(w);
  alignas(64) float odd[kFewRows * kPanel];
  {
    const Tiles tiles(rows);
    tile_zero<0>();
    tile_zero<1>();
    int64_t c = 0;
    for (; c + 2 * kTileDepth <= w.row_stride; c += 2 * kTileDepth) {
      add_tile<0, 4, 6>(data + c * kPanel, x + c, x_stride);
      add_tile<1, 5, 7>(data + (c + kTileDepth) * kPanel, x + c + kTileDepth, x_stride);
    }
    if (c < w.row_stride) add_tile<0, 4, 6>(data + c * kPanel, x + c, x_stride);
    tile_store<0>(out, kTileBytes);
    tile_store<1>(odd, kTileBytes);
  }
  for (int i = 0; i < rows * kPanel; i += kLanes) store(out + i, load(out + i) + load(odd + i));
}

inline void tiles_dot(const Weights& w, Panels panels, const void* prepared, int rows, float* out) {
  for (int n = 0; n < panels.count; ++n) {
    panel_tiles(w, panels.first + n, prepared, rows, out + n * kFewRows * kPanel);
  }
}

}  // namespace
}  // namespace flashvl::cpu::FLASHVL_LEVEL

#endif
