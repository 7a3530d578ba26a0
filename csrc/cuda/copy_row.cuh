// A row's part that falls to one thread, and its copy: words of any type, each read once.
//
// blockDim.x threads lie along a row, and gridDim.y blocks share it (flashvl_kernels/cuda/
// row_blocks.py). A thread has kRowVectors loads under way before it stores.
#pragma once

#include "memory.cuh"

namespace flashvl::cuda {

// Vectors of a row that a thread takes.
constexpr int kRowVectors = 2;

// Where this thread's vectors begin.
template <int kVec>
struct RowPart {
  int64_t step = static_cast<int64_t>(blockDim.x) * kVec;
  int64_t first = blockIdx.y * kRowVectors * step + threadIdx.x * kVec;

  __device__ __forceinline__ int64_t at(int v) const { return first + v * step; }
};

template <int kVec, class T>
__device__ __forceinline__ void copy_row(const RowPart<kVec>& part, const Global<const T>& from,
                                         const Global<T>& to, int64_t columns) {
  Vec<T, kVec> words[kRowVectors];
#pragma unroll
  for (int v = 0; v < kRowVectors; ++v) {
    if (part.at(v) < columns) words[v] = from.template load_once<kVec>(part.at(v));
  }
#pragma unroll
  for (int v = 0; v < kRowVectors; ++v) {
    if (part.at(v) < columns) to.store(part.at(v), words[v]);
  }
}

}  // namespace flashvl::cuda
