// What nvcc would know without being told: the keywords and built-in variables of CUDA C++, for a
// host compiler. csrc/cuda/base.cuh includes it first.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#define __global__ inline
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__
#define __launch_bounds__(...)
#define __grid_constant__

namespace flashvl::simt {

struct Dim3 {
  unsigned x = 1, y = 1, z = 1;
};

}  // namespace flashvl::simt

namespace flashvl::cuda {

// Set before a thread runs and whenever it goes on.
extern simt::Dim3 threadIdx, blockIdx, blockDim, gridDim;

inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float sqrtf(float x) { return std::sqrt(x); }
inline float expf(float x) { return std::exp(x); }
inline float exp2f(float x) { return std::exp2(x); }
inline float tanhf(float x) { return std::tanh(x); }
inline float erff(float x) { return std::erf(x); }
inline float fmaf(float a, float b, float c) { return std::fma(a, b, c); }
inline float fmaxf(float a, float b) { return std::fmax(a, b); }
inline float fminf(float a, float b) { return std::fmin(a, b); }
inline float fabsf(float x) { return std::fabs(x); }
template <class T>
T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
T max(T a, T b) {
  return a < b ? b : a;
}

}  // namespace flashvl::cuda
