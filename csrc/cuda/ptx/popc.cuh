// How many bits of a vote are set (PTX ISA, popc).
#pragma once

#include "../base.cuh"

namespace flashvl::cuda {

__device__ __forceinline__ int count_bits(uint32_t bits) {
#ifdef FLASHVL_SIMT
  return __builtin_popcount(bits);
#else
  return __popc(bits);
#endif
}

}  // namespace flashvl::cuda
