// Rows of an operand in shared memory, as the stages of a ring hold them.
#pragma once

#include "memory.cuh"

namespace flashvl::cuda {

// Rows of shared memory as 16-byte chunks, permuted so that eight rows at one chunk lie in
// different banks: rows of 64 bytes two by two, rows of 32 bytes four by four, rows of 16 as they
// are.
template <int kChunks>
struct StageRows {
  static constexpr int kWords = kChunks * 4;
  Shared<uint32_t> data;

  __device__ __forceinline__ Shared<uint32_t> at(int row, int chunk) const {
    if constexpr (kChunks == 4) chunk ^= row / 2 % 4;
    if constexpr (kChunks == 2) chunk ^= row / 4 % 2;
    return data + (row * kWords + chunk * 4);
  }
};

}  // namespace flashvl::cuda
