// Pointers that say the memory level, and the only way a kernel touches memory.
//
//   Global<const T> x;  x.load(i)          one element
//                       x.load<8>(i)       Vec<T, 8>, one access; x + i is aligned to its size
//                       x.load_once<8>(i)  the same, past the first-level cache: read once, by
//                                          nobody else; never memory that this launch writes
//   Global<T> y;        y.store(i, value), y.store(i, vec), y.atomic_add(i, value)
//   Shared<T> s;        load, store, atomic_add
//
//   FLASHVL_SHARED(float, sums, 32);               sums is a Shared<float>: a static array
//   Shared<T> tile = dynamic_shared<T>(offset);    from byte `offset` of the launch's dynamic part
//
// Offsets are 64 bits and count elements. The types have no operator[] and no operator*, so that
// under csrc/simt every access is checked and counted. They are as large as a pointer: a binding
// fills the arguments of a kernel with plain addresses.
#pragma once

#include "types.cuh"

#ifdef FLASHVL_SIMT
#include "../simt/memory.h"
#else
#include "ptx/load.cuh"

namespace flashvl::cuda {

template <class T>
struct Unqualified {
  using type = T;
};
template <class T>
struct Unqualified<const T> {
  using type = T;
};

template <class T>
struct Global {
  using Value = typename Unqualified<T>::type;
  T* address;

  __device__ __forceinline__ explicit operator bool() const { return address != nullptr; }
  __device__ __forceinline__ Global operator+(int64_t i) const { return {address + i}; }
  __device__ __forceinline__ Value load(int64_t i) const { return address[i]; }
  template <int N>
  __device__ __forceinline__ Vec<Value, N> load(int64_t i) const {
    // By value: a copy from a reference forgets the alignment, and nvcc reads it byte by byte.
    const auto bits = *reinterpret_cast<const Raw<N * sizeof(T)>*>(address + i);
    return move<Vec<Value, N>>(bits);
  }
  template <int N>
  __device__ __forceinline__ Vec<Value, N> load_once(int64_t i) const {
    return move<Vec<Value, N>>(
        load_no_allocate(reinterpret_cast<const Raw<N * sizeof(T)>*>(address + i)));
  }
  __device__ __forceinline__ void store(int64_t i, Value value) const { address[i] = value; }
  template <int N>
  __device__ __forceinline__ void store(int64_t i, const Vec<Value, N>& values) const {
    using Bits = Raw<N * sizeof(T)>;
    store_whole(reinterpret_cast<Bits*>(address + i), move<Bits>(values));
  }
  __device__ __forceinline__ Value atomic_add(int64_t i, Value value) const {
    return atomicAdd(address + i, value);
  }
};

template <class T>
struct Shared {
  using Value = typename Unqualified<T>::type;
  T* address;

  __device__ __forceinline__ Shared operator+(int64_t i) const { return {address + i}; }
  __device__ __forceinline__ Value load(int64_t i) const { return address[i]; }
  template <int N>
  __device__ __forceinline__ Vec<Value, N> load(int64_t i) const {
    const auto bits = *reinterpret_cast<const Raw<N * sizeof(T)>*>(address + i);
    return move<Vec<Value, N>>(bits);
  }
  __device__ __forceinline__ void store(int64_t i, Value value) const { address[i] = value; }
  template <int N>
  __device__ __forceinline__ void store(int64_t i, const Vec<Value, N>& values) const {
    using Bits = Raw<N * sizeof(T)>;
    *reinterpret_cast<Bits*>(address + i) = move<Bits>(values);
  }
  __device__ __forceinline__ Value atomic_add(int64_t i, Value value) const {
    return atomicAdd(address + i, value);
  }
  // The 32-bit address that ldmatrix and cp.async take.
  __device__ __forceinline__ uint32_t window() const {
    return static_cast<uint32_t>(__cvta_generic_to_shared(address));
  }
};

#define FLASHVL_SHARED(T, name, count)          \
  __shared__ alignas(16) T name##_array[count]; \
  const Shared<T> name { name##_array }

template <class T>
__device__ __forceinline__ Shared<T> dynamic_shared(int64_t offset_bytes = 0) {
  extern __shared__ __align__(128) unsigned char flashvl_dynamic_shared[];
  return {reinterpret_cast<T*>(flashvl_dynamic_shared + offset_bytes)};
}

}  // namespace flashvl::cuda
#endif
