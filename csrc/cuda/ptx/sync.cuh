// Barriers, shuffles and votes.
//
//   sync_block()                        __syncthreads
//   sync_warp(mask)                     __syncwarp
//   sync_named(id, threads)             bar.sync: waits until `threads` threads came to barrier id
//   arrive_named(id, threads)           bar.arrive: counts this thread, does not wait
//   shuffle_xor/down/idx(value, by)     fp32 or 32-bit integers, by all lanes of the mask
//   ballot(predicate), any(...), all(...)
//   fence_device()                      __threadfence
//
// A shuffle orders no memory: sync_warp() does.
#pragma once

#include "../base.cuh"

#ifdef FLASHVL_SIMT
#include "../../simt/sync.h"
#else

namespace flashvl::cuda {

__device__ __forceinline__ void sync_block() { __syncthreads(); }
__device__ __forceinline__ void sync_warp(uint32_t mask = kAllLanes) { __syncwarp(mask); }
__device__ __forceinline__ void fence_device() { __threadfence(); }

__device__ __forceinline__ void sync_named(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

__device__ __forceinline__ void arrive_named(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

template <class T>
__device__ __forceinline__ T shuffle_xor(T value, int by, uint32_t mask = kAllLanes) {
  return __shfl_xor_sync(mask, value, by);
}

template <class T>
__device__ __forceinline__ T shuffle_down(T value, int by, uint32_t mask = kAllLanes) {
  return __shfl_down_sync(mask, value, by);
}

template <class T>
__device__ __forceinline__ T shuffle_idx(T value, int from, uint32_t mask = kAllLanes) {
  return __shfl_sync(mask, value, from);
}

__device__ __forceinline__ uint32_t ballot(bool predicate, uint32_t mask = kAllLanes) {
  return __ballot_sync(mask, predicate);
}
__device__ __forceinline__ bool any(bool predicate, uint32_t mask = kAllLanes) {
  return __any_sync(mask, predicate) != 0;
}
__device__ __forceinline__ bool all(bool predicate, uint32_t mask = kAllLanes) {
  return __all_sync(mask, predicate) != 0;
}

}  // namespace flashvl::cuda
#endif
