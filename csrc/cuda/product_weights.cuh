// The formats of a weight's rows (flashvl_kernels/packing.py), and how their words become operands.
//
// q of an integer format is exact in bf16 and fp16, so tensor cores multiply q itself where the
// scale can follow the sum (LLM.int8(), arXiv 2208.07339; groups as AWQ's, arXiv 2306.00978).
// q becomes fp32 by arithmetic on bits: a conversion runs at a quarter of the rate of an addition.
#pragma once

#include "types.cuh"

namespace flashvl::cuda {

// kWordColumns: columns in 4 bytes. kGroup: columns that share a scale; 0 for whole rows.
struct Plain16 {  // bf16 or fp16, as x is
  static constexpr int kWordColumns = 2;
  static constexpr int kGroup = 0;
};
struct Plain32 {
  static constexpr int kWordColumns = 1;
  static constexpr int kGroup = 0;
};
struct Int8 {
  static constexpr int kWordColumns = 4;
  static constexpr int kGroup = 0;
};
struct Int4 {
  static constexpr int kWordColumns = 8;
  static constexpr int kGroup = 128;
};

template <class T>
__device__ __forceinline__ uint32_t operand_pair(float low, float high);
template <>
__device__ __forceinline__ uint32_t operand_pair<BF16>(float low, float high) {
  return bf16_pair(low, high);
}
template <>
__device__ __forceinline__ uint32_t operand_pair<F16>(float low, float high) {
  return f16_pair(low, high);
}

// The integer n < 2^23 minus `zero`, exactly: the bits of 2^23 + n are those of 2^23, and n.
__device__ __forceinline__ float small_integer(uint32_t n, float zero) {
  return __builtin_bit_cast(float, 0x4b000000u | n) - (8388608.0f + zero);
}

// Column `i` of a word.
__device__ __forceinline__ float column_of(Int8, uint32_t word, int i) {
  return small_integer(((word ^ 0x80808080u) >> 8 * i) & 255u, 128.0f);
}
__device__ __forceinline__ float column_of(Int4, uint32_t word, int i) {
  return small_integer((word >> 4 * i) & 15u, 8.0f);
}
__device__ __forceinline__ float column_of(Plain32, uint32_t word, int) {
  return __builtin_bit_cast(float, word);
}

// Columns 2 i and 2 i + 1 of a word as one register of an operand.
template <class T, class W>
__device__ __forceinline__ uint32_t columns_of(W, uint32_t word, int i) {
  return operand_pair<T>(column_of(W{}, word, 2 * i), column_of(W{}, word, 2 * i + 1));
}
template <class T>
__device__ __forceinline__ uint32_t columns_of(Plain16, uint32_t word, int) {
  return word;
}

// The two elements of a register of 16-bit elements.
template <class T>
__device__ __forceinline__ float low_of(uint32_t pair) {
  return to_float(T{static_cast<uint16_t>(pair)});
}
template <class T>
__device__ __forceinline__ float high_of(uint32_t pair) {
  return to_float(T{static_cast<uint16_t>(pair >> 16)});
}

}  // namespace flashvl::cuda
