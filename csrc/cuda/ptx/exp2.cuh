// 2^x in one instruction (PTX ISA, ex2.approx: 2 units in the last place; subnormals are zero).
#pragma once

#include "../base.cuh"

namespace flashvl::cuda {

__device__ __forceinline__ float exp2_approximate(float x) {
#ifdef FLASHVL_SIMT
  return exp2f(x);
#else
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

}  // namespace flashvl::cuda
