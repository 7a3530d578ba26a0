// The inner block of a bf16 product on AMX tiles: 32 rows times two panels, 2 x 2 tiles of sums.
//
// Four products share four tile loads. A product takes 16 cycles and a load 8 from the first-level
// cache, 21 and more from the second, so of the two operands one has to come from the first level.
// Exists at level amx only.
#pragma once

#include "row_layout.h"
#include "tile.h"

#if defined(FLASHVL_LEVEL_amx)

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

struct TileBlock {
  using Element = BF16;  // of packed rows and panels
  using Scope = Tiles;   // to be held around calls of multiply
  static constexpr int64_t kRows = 2 * kTileRows;
  // Steps that sums stay in the tiles: two panels of 18 are 36 KiB of a first-level cache of 48.
  static constexpr int64_t kSteps = 18;
  static constexpr int64_t kTile = kTileRows * kDepth;      // elements of an operand tile
  static constexpr int64_t kTileSums = kTileRows * kPanel;  // fp32 sums of one
  static constexpr int64_t kSums = 4 * kTileSums;

  static RowLayout<kRows> layout(int64_t columns) {
    return {depth_steps(columns) * 2 * kTile, kDepth, 2 * kTile};
  }

  // sums += a times two panels over `steps` steps, or = where `fresh`. next_sums are those that a
  // following call will add to: fetched meanwhile, because 64 lines from the second-level cache
  // would otherwise be waited for. between(s) runs after step s is started: vector instructions in
  // it cost nothing, since the tiles are busy for 64 cycles a step.
  template <class Between>
  static void multiply(const BF16* a, const RowLayout<kRows>&, const BF16* left, const BF16* right,
                       int64_t steps, bool fresh, float* sums, const float* next_sums,
                       Between between) {
    if (fresh) {
      tile_zero<0>(), tile_zero<1>(), tile_zero<2>(), tile_zero<3>();
    } else {
      tile_load<0>(sums, kTileBytes);
      tile_load<1>(sums + kTileSums, kTileBytes);
      tile_load<2>(sums + 2 * kTileSums, kTileBytes);
      tile_load<3>(sums + 3 * kTileSums, kTileBytes);
    }
    for (int64_t s = 0; s < steps; ++s) {
      tile_load_once<4>(a, kTileBytes);
      tile_load<6>(left, kTileBytes);
      tile_load<7>(right, kTileBytes);
      tile_load_once<5>(a + kTile, kTileBytes);
      tile_dot_bf16<0, 4, 6>();
      tile_dot_bf16<1, 4, 7>();
      tile_dot_bf16<2, 5, 6>();
      tile_dot_bf16<3, 5, 7>();
      a += 2 * kTile, left += kTile, right += kTile;
      if (!fresh && s < 8) {
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) __builtin_prefetch(next_sums + (8 * s + i) * 16, 1);
      }
      between(s);
    }
    tile_store<0>(sums, kTileBytes);
    tile_store<1>(sums + kTileSums, kTileBytes);
    tile_store<2>(sums + 2 * kTileSums, kTileBytes);
    tile_store<3>(sums + 3 * kTileSums, kTileBytes);
  }

  // Sums are whole as they are.
  static void add_pairs(float*) {}

  // The 16 sums of a row with one of the two panels.
  static const float* sums_at(const float* sums, int64_t row, int panel) {
    return sums + (row / kTileRows * 2 + panel) * kTileSums + row % kTileRows * kPanel;
  }
};

}  // namespace
}  // namespace flashvl::cpu::FLASHVL_LEVEL

#endif
