// The ceilings of a core: multiply-adds that never leave the registers, and a read that computes
// next to nothing. Kernels are measured against these, so each loop is as good as it gets: bound by
// the issue rate of its one instruction, or by memory.

#include "peak.h"

#include "matrix/register_dot.h"
#include "matrix/tile.h"
#include "vec.h"

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

// A fused multiply-add takes 4 cycles (a bf16 dot 6) and two start per cycle: 12 chains keep every
// unit busy and still fit the 16 registers of AVX2 beside the factors.
constexpr int kChains = 12;
constexpr int kSteps = 16;  // a round: long enough for the loop's own count not to show

// Keeps a value in its register, and the compiler from folding what computed it.
inline void keep(F32& value) {
#if defined(FLASHVL_LEVEL_scalar)
  asm volatile("" : "+m"(value));
#else
  asm volatile("" : "+v"(value.lanes));
#endif
}

// Every chain is c = c * a + a with |a| < 1: it stays a normal number however long it runs.
int64_t fma_loop(int64_t rounds) {
#if defined(FLASHVL_LEVEL_scalar)
  constexpr int kUsed = 1;  // 8 lanes of the scalar vector are two or more registers already
#else
  constexpr int kUsed = kChains;
#endif
  F32 sums[kUsed], factor = splat(0.5f);
  for (int c = 0; c < kUsed; ++c) sums[c] = splat(1.0f + 0.01f * static_cast<float>(c));
  keep(factor);
  for (int64_t r = 0; r < rounds; ++r) {
    for (int s = 0; s < kSteps; ++s) {
#pragma GCC unroll 12
      for (int c = 0; c < kUsed; ++c) sums[c] = fma(sums[c], factor, factor);
    }
  }
  for (int c = 0; c < kUsed; ++c) keep(sums[c]);
  return int64_t{2} * kLanes * kUsed * kSteps;
}

#if defined(FLASHVL_HAS_AVX512_BF16)
int64_t dot_loop(int64_t rounds) {
  F32 sums[kChains];
  for (int c = 0; c < kChains; ++c) sums[c] = zero();
  const Pairs ones = one_pairs();
  for (int64_t r = 0; r < rounds; ++r) {
    for (int s = 0; s < kSteps; ++s) {
#pragma GCC unroll 12
      for (int c = 0; c < kChains; ++c) sums[c] = dot_pairs(sums[c], ones, ones);
    }
  }
  for (int c = 0; c < kChains; ++c) keep(sums[c]);
  return int64_t{kPairFlops} * kChains * kSteps;
}
#else
int64_t dot_loop(int64_t) { return 0; }
#endif

#if defined(FLASHVL_LEVEL_amx)
// A tile product takes 52 cycles and one starts every 16: four accumulators hide the latency. The
// 2 x 2 pattern of sources is the one a GEMM uses, too.
int64_t tile_loop(int64_t rounds) {
  const Tiles scope;
  tile_zero<0>(), tile_zero<1>(), tile_zero<2>(), tile_zero<3>();
  tile_zero<4>(), tile_zero<5>(), tile_zero<6>(), tile_zero<7>();
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 16
    for (int s = 0; s < kSteps; ++s) {
      tile_dot_bf16<0, 4, 6>();
      tile_dot_bf16<1, 4, 7>();
      tile_dot_bf16<2, 5, 6>();
      tile_dot_bf16<3, 5, 7>();
    }
  }
  return int64_t{2} * kTileRows * kTileRows * kTileDepth * 4 * kSteps;
}
#else
int64_t tile_loop(int64_t) { return 0; }
#endif

// Four places of the buffer are read in turns: each page's hardware prefetcher then runs on its
// own. One place alone leaves a fifth of the bandwidth of a busy core unused.
constexpr int kPlaces = 4;
constexpr int kPerStep = 4;  // vectors a place and step

}  // namespace

int64_t peak_loop(Peak what, int64_t rounds) {
  switch (what) {
    case Peak::fma_f32:
      return fma_loop(rounds);
    case Peak::dot_bf16:
      return dot_loop(rounds);
    case Peak::tiles_bf16:
      return tile_loop(rounds);
  }
  return 0;
}

void read_loop(const void* bytes, int64_t size) {
  const float* p = static_cast<const float*>(bytes);
  const int64_t part = size / static_cast<int64_t>(sizeof(float)) / kPlaces;
  F32 sums[kPerStep] = {zero(), zero(), zero(), zero()};
  for (int64_t i = 0; i < part; i += kPerStep * kLanes) {
#pragma GCC unroll 4
    for (int place = 0; place < kPlaces; ++place) {
#pragma GCC unroll 4
      for (int v = 0; v < kPerStep; ++v) {
        sums[v] = sums[v] + load(p + place * part + i + v * kLanes);
      }
    }
  }
  for (int v = 0; v < kPerStep; ++v) keep(sums[v]);
}

}  // namespace flashvl::cpu::FLASHVL_LEVEL
