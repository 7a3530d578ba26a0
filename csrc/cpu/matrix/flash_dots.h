// What flash.h multiplies bf16 with at level avx512_bf16: pairs along the summed axis, by
// vdpbf16ps.
//
// Keys stay as they are, pairs of channels side by side; values become pairs of neighbouring keys,
// and so do the probabilities, in the place of the scores they are made of. All have queries in the
// lanes, as FlashFloats'.
#pragma once

#include "flash_bf16.h"
#include "flash_buffers.h"
#include "flash_product.h"

#if defined(FLASHVL_LEVEL_avx512_bf16)

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

class FlashDots : public FlashBuffers {
 public:
  template <class Arena>
  FlashDots(Arena& arena, int64_t head_dim, int64_t longest, int64_t slots)
      : FlashBuffers(arena, slots, longest * ((head_dim + 1) / 2), (longest + 1) / 2 * head_dim,
                     (head_dim + 1) / 2, head_dim),
        depth_((head_dim + 1) / 2) {}

  // Keys [first, last) of `keys`; first is a multiple of kPackKeys, and so even.
  void pack(const BF16* k, int64_t k_stride, const BF16* v, int64_t v_stride, int64_t,
            int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      for (int64_t d = 0; d < head_dim_; d += 2 * kLanes) {
        store_up_to(keys_ + i * depth_ + d / 2, load_pairs(k + i * k_stride + d, head_dim_ - d),
                    depth_ - d / 2);
      }
    }
    for (int64_t i = first; i < last; i += 2) {
      const BF16* pair = v + i * v_stride;
      for (int64_t d = 0; d < head_dim_; d += kLanes) {
        const BF16* odd = i + 1 < last ? pair + v_stride + d : nullptr;
        store_up_to(values_ + i / 2 * head_dim_ + d, zip(pair + d, odd, head_dim_ - d),
                    head_dim_ - d);
      }
    }
  }

  void pack_queries(const BF16* const* rows, float sign) {
    F32 block[kLanes];
    for (int v = 0; v < kQueryVectors; ++v) {
      for (int64_t d = 0; d < depth_; d += kLanes) {
        for (int i = 0; i < kLanes; ++i) {
          block[i] = load_pairs(rows[v * kLanes + i] + 2 * d, head_dim_ - 2 * d);
        }
        transpose(block);
        for (int i = 0; i < kLanes; ++i) {
          store(queries_ + (d + i) * kQueries + v * kLanes,
                sign < 0 ? flip_signs(block[i]) : block[i]);
        }
      }
    }
  }

  int64_t score(int64_t first, int64_t keys, int vectors) {
    const FlashMatrix a = {keys_ + first * depth_, depth_, 1};
    flash_product<BF16Pairs>(scores_, a, queries_, keys, depth_, vectors, false);
    return keys;
  }

  F32 probabilities(int v, int64_t rows, F32 factor, F32 top) {
    float* p = scores_ + v * kLanes;
    const F32 low = zero() - top;
    F32 sums[2] = {zero(), zero()};
    for (int64_t r = 0; r < rows; r += 4) {
#pragma GCC unroll 2
      for (int64_t k = 0; k < 2; ++k) {
        const int64_t even = r + 2 * k;
        if (even >= rows) break;
        const F32 odd = even + 1 < rows ? probability(p, even + 1, factor, low) : zero();
        const F32 pair = cut_to_pairs(probability(p, even, factor, low), odd);
        store(p + even / 2 * kQueries, pair);
        sums[k] = add_pairs(sums[k], pair);
      }
    }
    return sums[0] + sums[1];
  }

  void weigh(int64_t first, int64_t rows, int vectors, bool add) {
    const FlashMatrix a = {values_ + first / 2 * head_dim_, 1, head_dim_};
    flash_product<BF16Pairs>(out_, a, scores_, head_dim_, (rows + 1) / 2, vectors, add);
  }

 private:
  static F32 probability(const float* p, int64_t r, F32 factor, F32 low) {
    return exp2_to_cut(fma(load(p + r * kQueries), factor, low));
  }

  const int64_t depth_;  // pairs of channels
};

}  // namespace
}  // namespace flashvl::cpu::FLASHVL_LEVEL

#endif
