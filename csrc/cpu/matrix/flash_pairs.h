// The matrix products of flash.h for bf16 on AMX tiles, which multiply pairs of neighbours along
// the summed axis.
//
// Scores are computed as K Q^T and outputs as V^T P, with queries in the columns: what the first
// product leaves is, two rows rounded into one, the second operand of the second. Everything is
// packed in tiles of 1 KB, zeros where the head dimension or the keys end:
//
//   keys      [keys/16][D/32]  tiles of 16 keys x 32 dims          (first operand)
//   values    [keys/32][D/16]  tiles of 16 dims x 32 keys
//   queries   [2][D/32]        tiles of 16 pairs of dims x 16 queries (second operand)
//   scores    [2][keys/16]     tiles of 16 keys x 16 queries, fp32
//             [2][keys/32]     tiles of 16 pairs of keys x 16 queries, in the same place
//   out       [2][D/16]        tiles of 16 dims x 16 queries, fp32
//
// Bound by the tile unit (a third of the time), what it waits for (a third: stores of its results,
// keys and values from the second-level cache) and the exponentials (a fifth, and not to be hidden
// behind the tiles: docs/ladders/attention.md).
#pragma once

#include "flash_bf16.h"
#include "tile.h"

#if defined(FLASHVL_LEVEL_amx)

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

constexpr int64_t kSide = 16;
constexpr int64_t kPairTile = 512;   // bf16 elements of a tile
constexpr int64_t kFloatTile = 256;  // fp32 elements of a tile

// Tiles of the first operand: how far apart in elements along C's rows and along the sum.
struct PairMatrix {
  const BF16* data;
  int64_t row;
  int64_t step;
};

using FlashScope = Tiles;

// C (rows x columns tiles) = or += A B over `steps` tiles. The second column's tiles lie
// `c_column` and `b_column` elements after the first's.
template <int rows, int columns>
inline void pair_product(float* c, int64_t c_column, PairMatrix a, const BF16* b, int64_t b_column,
                         int64_t steps, bool add) {
  constexpr int64_t kStride = kTileBytes;
  if (add) {
    tile_load<0>(c, kStride);
    if constexpr (columns == 2) tile_load<1>(c + c_column, kStride);
    if constexpr (rows == 2) tile_load<2>(c + kFloatTile, kStride);
    if constexpr (rows == 2 && columns == 2) tile_load<3>(c + c_column + kFloatTile, kStride);
  } else {
    tile_zero<0>();
    if constexpr (columns == 2) tile_zero<1>();
    if constexpr (rows == 2) tile_zero<2>();
    if constexpr (rows == 2 && columns == 2) tile_zero<3>();
  }
  for (int64_t s = 0; s < steps; ++s) {
    tile_load<4>(a.data + s * a.step, kStride);
    tile_load<6>(b + s * kPairTile, kStride);
    tile_dot_bf16<0, 4, 6>();
    if constexpr (columns == 2) {
      tile_load<7>(b + b_column + s * kPairTile, kStride);
      tile_dot_bf16<1, 4, 7>();
    }
    if constexpr (rows == 2) {
      tile_load<5>(a.data + a.row + s * a.step, kStride);
      tile_dot_bf16<2, 5, 6>();
      if constexpr (columns == 2) tile_dot_bf16<3, 5, 7>();
    }
  }
  tile_store<0>(c, kStride);
  if constexpr (columns == 2) tile_store<1>(c + c_column, kStride);
  if constexpr (rows == 2) tile_store<2>(c + kFloatTile, kStride);
  if constexpr (rows == 2 && columns == 2) tile_store<3>(c + c_column + kFloatTile, kStride);
}

inline void pair_product(float* c, int64_t c_column, PairMatrix a, const BF16* b, int64_t b_column,
                         int64_t rows, int columns, int64_t steps, bool add) {
  int64_t r = 0;
  for (; r + 2 <= rows; r += 2, a.data += 2 * a.row, c += 2 * kFloatTile) {
    if (columns == 2) {
      pair_product<2, 2>(c, c_column, a, b, b_column, steps, add);
    } else {
      pair_product<2, 1>(c, c_column, a, b, b_column, steps, add);
    }
  }
  if (r == rows) return;
  if (columns == 2) {
    pair_product<1, 2>(c, c_column, a, b, b_column, steps, add);
  } else {
    pair_product<1, 1>(c, c_column, a, b, b_column, steps, add);
  }
}

class FlashPairs {
 public:
  static constexpr int64_t kKeys =
      128;  // of a block: 16 KB of scores, which with the queries stay in first-level cache
  static constexpr FlashLayout kScores = {kSide, kKeys * kSide};

  template <class Arena>
  FlashPairs(Arena& arena, int64_t head_dim, int64_t longest, int64_t slots)
      : head_dim_(head_dim), depth_((head_dim + 31) / 32), dims_((head_dim + kSide - 1) / kSide) {
    const int64_t key_tiles = (longest + 31) / 32 * 2;
    keys_size_ = key_tiles * depth_ * kPairTile;
    values_size_ = key_tiles / 2 * dims_ * kPairTile;
    all_keys_ = keys_ = arena.template take<BF16>(slots * keys_size_);
    all_values_ = values_ = arena.template take<BF16>(slots * values_size_);
    queries_ = arena.template take<BF16>(2 * depth_ * kPairTile);
    scores_ = arena.template take<float>(kKeys * kQueries);
    out_ = arena.template take<float>(2 * dims_ * kFloatTile);
  }

  void use(int64_t slot) {
    keys_ = all_keys_ + slot * keys_size_;
    values_ = all_values_ + slot * values_size_;
  }

  // Keys [first, last) of `keys`; first is a multiple of kPackKeys.
  void pack(const BF16* k, int64_t k_stride, const BF16* v, int64_t v_stride, int64_t keys,
            int64_t first, int64_t last) {
    const int64_t padded = (last + 31) / 32 * 32;
    for (int64_t i = first; i < padded; ++i) {
      BF16* to = keys_ + i / kSide * depth_ * kPairTile + i % kSide * 32;
      for (int64_t s = 0; s < depth_; ++s) {
        const int64_t n = i < keys ? head_dim_ - 32 * s : 0;
        store_pairs(to + s * kPairTile, load_pairs(k + i * k_stride + 32 * s, n));
      }
    }
    for (int64_t i = first; i < padded; i += 32) {
      for (int64_t t = 0; t < dims_; ++t) {
        const BF16* from = v + i * v_stride + t * kSide;
        pack_values(from, v_stride, keys - i, head_dim_ - t * kSide,
                    values_ + (i / 32 * dims_ + t) * kPairTile);
      }
    }
  }

  void pack_queries(const BF16* const* rows, float sign) {
    F32 block[kLanes];
    for (int v = 0; v < 2; ++v) {
      for (int64_t s = 0; s < depth_; ++s) {
        for (int i = 0; i < kLanes; ++i) {
          block[i] = load_pairs(rows[v * kLanes + i] + 32 * s, head_dim_ - 32 * s);
        }
        transpose(block);
        BF16* to = queries_ + (v * depth_ + s) * kPairTile;
        for (int i = 0; i < kLanes; ++i) {
          store_pairs(to + i * 32, sign < 0 ? flip_signs(block[i]) : block[i]);
        }
      }
    }
  }

  int64_t score(int64_t first, int64_t keys, int vectors) {
    const int64_t padded = (keys + 31) / 32 * 32;
    const PairMatrix a = {keys_ + first / kSide * depth_ * kPairTile, depth_ * kPairTile,
                          kPairTile};
    pair_product(scores_, kScores.vector, a, queries_, depth_ * kPairTile, padded / kSide, vectors,
                 depth_, false);
    return padded;
  }

  float* scores() { return scores_; }

  F32 probabilities(int v, int64_t rows, F32 factor, F32 top) {
    const float* s = scores_ + v * kScores.vector;
    BF16* p = pairs(v);
    const F32 low = zero() - top;
    F32 sums[2] = {zero(), zero()};
    for (int64_t r = 0; r < rows; r += 4) {
      F32 y[4];
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) y[k] = exp2_to_cut(fma(load(s + (r + k) * kSide), factor, low));
      const F32 first = cut_to_pairs(y[0], y[1]), second = cut_to_pairs(y[2], y[3]);
      store_pairs(p + r * kSide, first);
      store_pairs(p + (r + 2) * kSide, second);
      sums[0] = add_pairs(sums[0], first);
      sums[1] = add_pairs(sums[1], second);
    }
    return sums[0] + sums[1];
  }

  void weigh(int64_t first, int64_t rows, int vectors, bool add) {
    const PairMatrix a = {values_ + first / 32 * dims_ * kPairTile, kPairTile, dims_ * kPairTile};
    pair_product(out_, dims_ * kFloatTile, a, pairs(0), pairs(1) - pairs(0), dims_, vectors,
                 rows / 32, add);
  }

  float* out() { return out_; }
  FlashLayout out_layout() const { return {kSide, dims_ * kFloatTile}; }

 private:
  // The probabilities lie over the scores they were made of, at half the length.
  BF16* pairs(int v) { return reinterpret_cast<BF16*>(scores_ + v * kScores.vector); }

  static void pack_values(const BF16* from, int64_t stride, int64_t keys, int64_t dims, BF16* to) {
    F32 block[kLanes];
    for (int64_t j = 0; j < kLanes; ++j) {
      const BF16* pair = from + 2 * j * stride;
      block[j] =
          2 * j >= keys ? zero() : zip(pair, 2 * j + 1 < keys ? pair + stride : nullptr, dims);
    }
    transpose(block);
    for (int64_t j = 0; j < kLanes; ++j) store_pairs(to + j * 32, block[j]);
  }

  int64_t head_dim_;
  int64_t depth_;  // tiles along the head dimension, 32 a tile
  int64_t dims_;   // and 16 a tile
  int64_t keys_size_;
  int64_t values_size_;
  BF16* all_keys_;
  BF16* all_values_;
  BF16* keys_;  // of the slot in use
  BF16* values_;
  BF16* queries_;
  float* scores_;
  float* out_;
};

}  // namespace
}  // namespace flashvl::cpu::FLASHVL_LEVEL

#endif
