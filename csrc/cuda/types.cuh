// Element types, vectors of them in registers, and the roundings between them and fp32.
//
// bf16 and fp16 are 16 bits and two conversions; everything is computed in fp32. The toolkit's
// cuda_bf16.h is not used: NVRTC must compile these files on a machine without a toolkit.
#pragma once

#include "base.cuh"
#include "ptx/convert.cuh"

namespace flashvl::cuda {

struct BF16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(BF16 value) { return float_from_bf16(value.bits); }
__device__ __forceinline__ float to_float(F16 value) { return float_from_f16(value.bits); }

// The nearest T; ties go to even.
template <class T>
__device__ __forceinline__ T from_float(float value);
template <>
__device__ __forceinline__ float from_float<float>(float value) {
  return value;
}
template <>
__device__ __forceinline__ BF16 from_float<BF16>(float value) {
  return {bf16_from_float(value)};
}
template <>
__device__ __forceinline__ F16 from_float<F16>(float value) {
  return {f16_from_float(value)};
}

// What is left of `value` when it has been stored as a T: a cast of the reference.
template <class T>
__device__ __forceinline__ float round_to(float value) {
  return to_float(from_float<T>(value));
}

// The same bits as another type; registers only.
template <class To, class From>
__device__ __forceinline__ To bits_as(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

// N elements in registers, moved by one access of N * sizeof(T) bytes.
template <class T, int N>
struct alignas(N * sizeof(T)) Vec {
  T at[N];

  __device__ __forceinline__ T& operator[](int i) { return at[i]; }
  __device__ __forceinline__ const T& operator[](int i) const { return at[i]; }
};

}  // namespace flashvl::cuda
