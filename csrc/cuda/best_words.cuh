// The best words of a row, kept by a warp while logits go by.
//
// A logit and its word make one 64-bit key whose order is the wanted one: higher logits first, then
// lower words, NaN above all, as torch.max has it. Keys differ, so the result does not depend on
// who saw which word when.
#pragma once

#include "memory.cuh"
#include "ptx/sync.cuh"

namespace flashvl::cuda {

constexpr int64_t kNoWord = -0x7fffffffffffffff - 1;

// The bits of a float order as integers do once those below the sign are flipped in negative ones;
// -0 becomes 0, which equals it, and every NaN the one above Inf.
__device__ __forceinline__ int64_t key_of(float logit, int64_t word) {
  const int32_t bits = bits_as<int32_t>(logit == 0.0f ? 0.0f : logit);
  const int32_t order = logit != logit ? 0x7fc00000 : bits ^ (bits >> 31 & 0x7fffffff);
  return static_cast<int64_t>(static_cast<uint64_t>(static_cast<uint32_t>(order)) << 32 |
                              (0xffffffffu - static_cast<uint32_t>(word)));
}

__device__ __forceinline__ float logit_of(int64_t key) {
  const int32_t order = static_cast<int32_t>(key >> 32);
  return bits_as<float>(order ^ (order >> 31 & 0x7fffffff));
}

__device__ __forceinline__ int64_t word_of(int64_t key) {
  return 0xffffffffu - static_cast<uint32_t>(key & 0xffffffff);
}

__device__ __forceinline__ int64_t warp_best(int64_t key) {
#pragma unroll
  for (int by = kWarp / 2; by > 0; by /= 2) key = max(key, shuffle_xor(key, by));
  return key;
}

// All lanes of a warp call each function together. A lane holds the slots lane, lane + 32, ...
class BestWords {
 public:
  static constexpr int kSlots = 4;
  static constexpr int kMost = kSlots * kWarp;  // words asked for at most

  // Empty slots hold keys below that of any word, no two alike; slots past k are never the worst.
  __device__ __forceinline__ explicit BestWords(int k) {
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      const int slot = lane() + s * kWarp;
      kept_[s] = slot < k ? kNoWord + slot : ~kNoWord;
    }
    worst_ = kNoWord;
  }

  // A key of each lane, kNoWord for none. Most are no better than the worst that is kept.
  __device__ __forceinline__ void offer(int64_t key) {
    while (any(key > worst_)) {
      const int64_t best = warp_best(key);
      if (key == best) key = kNoWord;
      int64_t worst = ~kNoWord;
#pragma unroll
      for (int s = 0; s < kSlots; ++s) {
        if (kept_[s] == worst_) kept_[s] = best;
        worst = min(worst, kept_[s]);
      }
      worst_ = ~warp_best(~worst);
    }
  }

  // Calls visit(slot, key) for this lane's slots; kNoWord where a slot is empty.
  template <class V>
  __device__ __forceinline__ void each(int k, V visit) const {
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      const int slot = lane() + s * kWarp;
      if (slot < k) visit(slot, kept_[s] < kNoWord + kMost ? kNoWord : kept_[s]);
    }
  }

  // Takes the best one out.
  __device__ __forceinline__ int64_t take(int k) {
    int64_t mine = kNoWord;
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      if (lane() + s * kWarp < k) mine = max(mine, kept_[s]);
    }
    const int64_t best = warp_best(mine);
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      if (kept_[s] == best) kept_[s] = kNoWord;
    }
    return best;
  }

 private:
  int64_t kept_[kSlots];
  int64_t worst_;
};

}  // namespace flashvl::cuda
