// Bits of 1 to 16 bytes, loads of them past the first-level cache, and stores that stay whole. For
// memory.cuh; nvcc only.
#pragma once

#include "../base.cuh"

namespace flashvl::cuda {

template <int kBytes>
struct RawBits;
template <>
struct RawBits<1> {
  using type = unsigned char;
};
template <>
struct RawBits<2> {
  using type = unsigned short;
};
template <>
struct RawBits<4> {
  using type = unsigned int;
};
template <>
struct RawBits<8> {
  using type = uint2;
};
template <>
struct RawBits<16> {
  using type = uint4;
};
template <int kBytes>
using Raw = typename RawBits<kBytes>::type;

// The same bits as another type; registers only.
template <class To, class From>
__device__ __forceinline__ To move(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

__device__ __forceinline__ uint4 load_no_allocate(const uint4* p) {
  uint4 v;
  asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
      : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
      : "l"(p));
  return v;
}

__device__ __forceinline__ uint2 load_no_allocate(const uint2* p) {
  uint2 v;
  asm("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p));
  return v;
}

__device__ __forceinline__ unsigned int load_no_allocate(const unsigned int* p) {
  unsigned int v;
  asm("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(v) : "l"(p));
  return v;
}

__device__ __forceinline__ unsigned short load_no_allocate(const unsigned short* p) {
  unsigned short v;
  asm("ld.global.nc.L1::no_allocate.u16 %0, [%1];" : "=h"(v) : "l"(p));
  return v;
}

// Before sm_100 nvcc takes a vector that was computed element by element apart again: a 16-byte
// store in C++ became four of 4 bytes. The clobber keeps later loads of the same memory behind it.
__device__ __forceinline__ void store_whole(uint4* p, uint4 v) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};"
               :
               : "l"(p), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
               : "memory");
}

__device__ __forceinline__ void store_whole(uint2* p, uint2 v) {
  asm volatile("st.global.v2.u32 [%0], {%1, %2};" : : "l"(p), "r"(v.x), "r"(v.y) : "memory");
}

template <class Bits>
__device__ __forceinline__ void store_whole(Bits* p, Bits v) {
  *p = v;
}

}  // namespace flashvl::cuda
