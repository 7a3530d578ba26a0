// The inner blocks of a product on vectors: a few rows times two panels, sums in registers.
//
//   FloatBlock     fp32 at every level; bf16 and fp16 rows and panels are widened when packed
//   Bf16Block      bf16 pairs, by vdpbf16ps: half the memory of FloatBlock at the same FLOPs
//
// Bound by the multiply-adds: at AVX-512 a step of two columns takes 6 broadcasts and 4 loads for
// 24 multiply-adds, at AVX2 3 and 4 for 12.
#pragma once

#include "row_layout.h"

#if defined(FLASHVL_LEVEL_scalar)
#define FLASHVL_BLOCK_ROWS 1
#define FLASHVL_BLOCK_PANELS 1
#elif defined(FLASHVL_LEVEL_avx2)
#define FLASHVL_BLOCK_ROWS 3
#define FLASHVL_BLOCK_PANELS 1
#else
#define FLASHVL_BLOCK_ROWS 6
#define FLASHVL_BLOCK_PANELS 2
#endif

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

// The rows that a block's registers hold, and how many of its two panels at a time.
constexpr int kBlockRows = FLASHVL_BLOCK_ROWS, kBlockPanels = FLASHVL_BLOCK_PANELS;

#undef FLASHVL_BLOCK_ROWS
#undef FLASHVL_BLOCK_PANELS

// Between packed rows: a stride of a power of two would put the same column of every row into one
// set of the cache.
constexpr int64_t kRowGap = kDepth;

struct NoScope {
  NoScope() {}
};

// p[0], p[1] in every pair of neighbouring lanes.
inline F32 splat_pair(const float* p) {
#if defined(FLASHVL_LEVEL_scalar)
  F32 out;
  for (int i = 0; i < kLanes; i += 2) out.lane[i] = p[0], out.lane[i + 1] = p[1];
  return out;
#elif defined(FLASHVL_LEVEL_avx2)
  return {_mm256_castpd_ps(_mm256_broadcast_sd(reinterpret_cast<const double*>(p)))};
#else
  return {_mm512_castpd_ps(_mm512_broadcastsd_pd(_mm_load_sd(reinterpret_cast<const double*>(p))))};
#endif
}

struct FloatBlock {
  using Element = float;
  using Scope = NoScope;
  static constexpr int64_t kRows = kBlockRows;
  // Of two panels in fp32, half of a first-level cache of 32 KiB at AVX2, most of 48 at AVX-512.
  static constexpr int64_t kSteps = kBlockPanels == 2 ? 8 : 4;
  static constexpr int kParts = 2 * kPanel / kLanes;  // registers of a panel's step of two columns
  static constexpr int64_t kSums = kRows * 2 * 2 * kPanel;

  static RowLayout<kRows> layout(int64_t columns) {
    const int64_t stride = depth_steps(columns) * kDepth + kRowGap;
    return {kRows * stride, stride, kDepth};
  }

  // sums += a times two panels over `steps` steps of kDepth columns, or = where `fresh`. The sum of
  // the steps is added at their end: with one running sum over K = 1536 the fp32 error was
  // 1.4 to 1.6 times that of PyTorch. Even and odd columns are summed in neighbouring lanes.
  // between(s) for each step comes afterwards: it would wait for the same units as the products.
  template <class Between>
  static void multiply(const float* a, const RowLayout<kRows>& layout, const float* left,
                       const float* right, int64_t steps, bool fresh, float* sums, const float*,
                       Between between) {
    if constexpr (kBlockPanels == 2) {
      part<2>(a, layout.row_stride, {left, right}, steps, fresh, sums);
    } else {
      part<1>(a, layout.row_stride, {left}, steps, fresh, sums);
      part<1>(a, layout.row_stride, {right}, steps, fresh, sums + 2 * kPanel);
    }
    for (int64_t s = 0; s < steps; ++s) between(s);
  }

  // Adds the sums over even and odd columns, in place: once, after the last multiply.
  static void add_pairs(float* sums) {
    for (int64_t i = 0; i < 2 * kRows; ++i) {
      float* pairs = sums + i * 2 * kPanel;
      for (int64_t c = 0; c < kPanel; c += kLanes) {
        store(pairs + c, add_neighbours(load(pairs + 2 * c), load(pairs + 2 * c + kLanes)));
      }
    }
  }

  // The 16 sums of a row with one of the two panels, after add_pairs.
  static const float* sums_at(const float* sums, int64_t row, int panel) {
    return sums + (row * 2 + panel) * 2 * kPanel;
  }

 private:
  template <int panels>
  static void part(const float* a, int64_t stride, const float* const (&b)[panels], int64_t steps,
                   bool fresh, float* sums) {
    F32 s[kRows][panels][kParts];
    const auto every = [&](auto f) {
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
        for (int p = 0; p < panels; ++p) {
#pragma GCC unroll 4
          for (int i = 0; i < kParts; ++i) {
            f(s[r][p][i], sums + (r * 2 + p) * 2 * kPanel + i * kLanes);
          }
        }
      }
    };
    every([&](F32& sum, const float*) { sum = zero(); });
    // The rows' values stay, one vector of weights at a time passes: all sums, the values and that
    // vector are exactly the 16 registers of AVX2.
    for (int64_t k = 0; k < steps * kDepth; k += 2) {
      F32 x[kRows];
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) x[r] = splat_pair(a + r * stride + k);
#pragma GCC unroll 2
      for (int p = 0; p < panels; ++p) {
#pragma GCC unroll 4
        for (int i = 0; i < kParts; ++i) {
          const F32 weights = load(b[p] + k * kPanel + i * kLanes);
#pragma GCC unroll 8
          for (int r = 0; r < kRows; ++r) s[r][p][i] = fma(weights, x[r], s[r][p][i]);
        }
      }
    }
    every([&](F32 sum, float* at) { store(at, fresh ? sum : load(at) + sum); });
  }
};

#if defined(FLASHVL_HAS_AVX512_BF16)

struct Bf16Pairs {
  __m512bh pairs;
};

// 16 pairs, as one step of two columns of a panel.
inline Bf16Pairs load_pairs_of_panel(const BF16* p) { return {(__m512bh)_mm512_loadu_si512(p)}; }

inline Bf16Pairs splat_row_pair(const BF16* p) {
  int pair;
  __builtin_memcpy(&pair, p, sizeof pair);
  return {(__m512bh)_mm512_set1_epi32(pair)};
}

inline F32 add_products(F32 sum, Bf16Pairs a, Bf16Pairs b) {
  return {_mm512_dpbf16_ps(sum.lanes, a.pairs, b.pairs)};
}

struct Bf16Block {
  using Element = BF16;
  using Scope = NoScope;
  static constexpr int64_t kRows = kBlockRows;
  static constexpr int64_t kSteps = 16;  // 32 KiB of two panels: the first-level cache
  static constexpr int64_t kSums = kRows * 2 * kPanel;

  static RowLayout<kRows> layout(int64_t columns) {
    const int64_t stride = depth_steps(columns) * kDepth + kRowGap;
    return {kRows * stride, stride, kDepth};
  }

  // As FloatBlock's.
  template <class Between>
  static void multiply(const BF16* a, const RowLayout<kRows>& layout, const BF16* left,
                       const BF16* right, int64_t steps, bool fresh, float* sums, const float*,
                       Between between) {
    F32 s[kRows][2];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      s[r][0] = s[r][1] = zero();
    }
    for (int64_t k = 0; k < steps * kDepth; k += 2) {
      const Bf16Pairs b0 = load_pairs_of_panel(left + k * kPanel);
      const Bf16Pairs b1 = load_pairs_of_panel(right + k * kPanel);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const Bf16Pairs x = splat_row_pair(a + r * layout.row_stride + k);
        s[r][0] = add_products(s[r][0], b0, x);
        s[r][1] = add_products(s[r][1], b1, x);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
      for (int p = 0; p < 2; ++p) {
        float* at = sums + (2 * r + p) * kPanel;
        store(at, fresh ? s[r][p] : load(at) + s[r][p]);
      }
    }
    for (int64_t i = 0; i < steps; ++i) between(i);
  }

  static void add_pairs(float*) {}

  static const float* sums_at(const float* sums, int64_t row, int panel) {
    return sums + (row * 2 + panel) * kPanel;
  }
};

#endif

}  // namespace
}  // namespace flashvl::cpu::FLASHVL_LEVEL
