// The first include of every CUDA kernel: integers, and what the compiler at hand must be told.
//
// The same sources are read by nvcc, by NVRTC (no standard headers there) and, with FLASHVL_SIMT
// defined, by a host compiler that runs them on the CPU under csrc/simt.
#pragma once

#ifdef FLASHVL_SIMT
#include "../simt/device.h"
#elif defined(__CUDACC_RTC__)
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long int64_t;
typedef unsigned long uint64_t;
typedef unsigned long uintptr_t;
#else
#include <cstdint>
#endif

namespace flashvl::cuda {

constexpr int kWarp = 32;
constexpr uint32_t kAllLanes = 0xffffffffu;

__device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x) % kWarp; }

__device__ constexpr int64_t ceil_div(int64_t n, int64_t by) { return (n + by - 1) / by; }

}  // namespace flashvl::cuda
