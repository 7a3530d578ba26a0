// Asynchronous copies from global to shared memory (PTX ISA, cp.async; sm_80 and later).
//
// The bytes are there after cp_async_wait<N>, which waits until at most N of this thread's newest
// groups are outstanding, and for other threads after a barrier on top.
#pragma once

#include "../memory.cuh"

#ifdef FLASHVL_SIMT
#include "../../simt/cp_async.h"
#else

namespace flashvl::cuda {

// 16 bytes, past the first-level cache. Where `fill` is false nothing is read and zeros arrive.
template <class T, class S>
__device__ __forceinline__ void cp_async_16(Shared<T> to, Global<S> from, bool fill = true) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to.window()),
               "l"(from.address), "r"(fill ? 16 : 0)
               : "memory");
}

// 4 or 8 bytes, for sources that are not aligned to 16.
template <int kBytes, class T, class S>
__device__ __forceinline__ void cp_async_small(Shared<T> to, Global<S> from, bool fill = true) {
  static_assert(kBytes == 4 || kBytes == 8);
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to.window()),
               "l"(from.address), "n"(kBytes), "r"(fill ? kBytes : 0)
               : "memory");
}

__device__ __forceinline__ void cp_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

template <int kOutstanding>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kOutstanding) : "memory");
}

}  // namespace flashvl::cuda
#endif
