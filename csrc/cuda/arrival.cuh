// The last block of several to finish, which may then use what the others left in global memory.
#pragma once

#include "memory.cuh"
#include "ptx/sync.cuh"

namespace flashvl::cuda {

// Whether this block is the last of `blocks` to count itself; then it sees what the others wrote.
// The counter is zero before and after, so that a launch can be replayed.
__device__ __forceinline__ bool last_to_arrive(Global<int> counter, int blocks) {
  FLASHVL_SHARED(int, before, 1);
  fence_device();
  sync_block();
  if (threadIdx.x == 0) before.store(0, counter.atomic_add(0, 1));
  sync_block();
  const bool last = before.load(0) == blocks - 1;
  if (last) {
    fence_device();
    if (threadIdx.x == 0) counter.store(0, 0);
  }
  return last;
}

}  // namespace flashvl::cuda
