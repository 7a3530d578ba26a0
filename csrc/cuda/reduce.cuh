// Sums over a warp and over a block; every thread gets the result.
#pragma once

#include "memory.cuh"
#include "ptx/sync.cuh"

namespace flashvl::cuda {

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int by = kWarp / 2; by > 0; by /= 2) value += shuffle_xor(value, by);
  return value;
}

// Sums over the threads that share a row: a warp, or all of a one-dimensional block.
template <bool kBlock>
class RowSum {
 public:
  __device__ __forceinline__ float operator()(float value) {
    value = warp_sum(value);
    if constexpr (kBlock) value = over_warps(value);
    return value;
  }

 private:
  // Two buffers take turns, so one barrier a sum is enough: whoever writes a buffer again has
  // passed the barrier of the other one, which all readers of the first have reached.
  __device__ __forceinline__ float over_warps(float value) {
    FLASHVL_SHARED(float, partial, 2 * kWarp);
    const Shared<float> mine = partial + turn_ * kWarp;
    turn_ ^= 1;
    if (lane() == 0) mine.store(threadIdx.x / kWarp, value);
    sync_block();
    return warp_sum(lane() < static_cast<int>(blockDim.x / kWarp) ? mine.load(lane()) : 0.0f);
  }

  int turn_ = 0;
};

}  // namespace flashvl::cuda
