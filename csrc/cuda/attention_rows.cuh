// The operands of attention, and how their rows reach shared memory.
//
// A head dimension that is no instance of the kernels (72 of 80, say) is padded here, with zeros
// and in shared memory only. Rows that are aligned to 16 bytes are copied by cp.async; others,
// and channels that are not neighbours, go through registers.
#pragma once

#include "memory.cuh"
#include "ptx/cp_async.cuh"

namespace flashvl::cuda {

constexpr float kMinusInfinity = __builtin_bit_cast(float, 0xff800000u);
constexpr float kLog2E = 1.44269504088896341f;  // exponentials are powers of 2

// Strides count elements.
template <class T>
struct Operand {
  Global<const T> data;
  int64_t batch, token, head, channel;
  int64_t wide;  // every row starts at a multiple of 16 bytes and is whole vectors of neighbours
};

// Rows in shared memory as chunks of 16 bytes, so placed that eight rows at one chunk, and eight
// chunks of one row, lie in different banks.
template <class T, int kDim>
struct SharedRows {
  static constexpr int kVec = 16 / sizeof(T);
  static constexpr int kChunks = kDim / kVec;
  // fp32 rows are padded; 16-bit rows are permuted, which takes no memory.
  static constexpr int kStride = sizeof(T) == 4 ? kDim + kVec : kDim;
  static_assert(sizeof(T) == 4 ? kChunks % 8 == 0 : kChunks % 8 == 0 || kChunks % 8 == 2);

  Shared<T> data;

  __device__ __forceinline__ Shared<T> at(int row, int chunk) const {
    if constexpr (sizeof(T) == 2) {
      // 80 channels are 10 chunks: four rows go once around the banks, in steps of two.
      chunk ^= kChunks % 8 == 0 ? row % 8 : row / 4 % 2;
    }
    return data + (row * kStride + chunk * kVec);
  }
};

// Copies rows 0 to `count` of `to`, by kThreads threads of which this is `rank`. row_at(i) is the
// offset in `from` of row i, or -1 where there is none: its place is filled with zeros, as are
// channels past `channels`.
template <int kThreads, class T, int kDim, class F>
__device__ __forceinline__ void copy_rows(const SharedRows<T, kDim>& to, int count, int rank,
                                          const Operand<T>& from, int64_t channels, F row_at) {
  using Rows = SharedRows<T, kDim>;
  if (from.wide) {
#pragma unroll 2
    for (int i = rank; i < count * Rows::kChunks; i += kThreads) {
      const int row = i / Rows::kChunks, chunk = i % Rows::kChunks;
      const int64_t offset = row_at(row);
      const bool there = offset >= 0 && chunk * Rows::kVec < channels;
      cp_async_16(to.at(row, chunk), from.data + (there ? offset + chunk * Rows::kVec : 0), there);
    }
    return;
  }
#pragma unroll 1
  for (int i = rank; i < count * Rows::kChunks; i += kThreads) {
    const int row = i / Rows::kChunks, chunk = i % Rows::kChunks;
    const int64_t offset = row_at(row);
    Vec<T, Rows::kVec> values;
#pragma unroll
    for (int e = 0; e < Rows::kVec; ++e) {
      const int64_t channel = chunk * Rows::kVec + e;
      const bool there = offset >= 0 && channel < channels;
      values[e] = there ? from.data.load(offset + channel * from.channel) : from_float<T>(0.0f);
    }
    to.at(row, chunk).store(0, values);
  }
}

// Keys and values of one head of one sequence or tile.
template <class T>
struct KeyRows {
  Operand<T> k, v;
  int64_t k_first, v_first;  // the offsets of key 0
  int64_t channels;
};

}  // namespace flashvl::cuda
