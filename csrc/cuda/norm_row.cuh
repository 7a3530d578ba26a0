// What the row norms share: their arguments, and a row, plus its residual, held in registers.
#pragma once

#include "reduce.cuh"
#include "rows.cuh"

namespace flashvl::cuda {

// y and total are contiguous rows; total is written where there is a residual.
template <class T>
struct NormArgs {
  Global<const T> x;
  Global<const T> residual;  // null: none
  Global<const T> weight;
  Global<const T> bias;  // LayerNorm only
  Global<T> y;
  Global<T> total;
  Rows x_rows, residual_rows;
  int64_t rows, columns;
  float eps;
};

// The threads of one row: a warp (blockDim is (32, rows a block)), or the block.
template <bool kBlockRow>
constexpr int kNormThreads = kBlockRow ? 512 : 128;
// Blocks a multiprocessor holds at least, by what sm_100 and sm_120 need not to spill.
template <bool kBlockRow, int kHeld>
constexpr int kNormBlocks = kBlockRow ? 1 : (kHeld > 4 ? 2 : 3);

template <class T, int kVec>
__device__ __forceinline__ Vec<T, kVec> sum_at(const NormArgs<T>& args, int64_t x_offset,
                                               int64_t residual_offset, int64_t c) {
  Vec<T, kVec> sum = args.x.template load_once<kVec>(x_offset + c);
  if (args.residual) {
    const Vec<T, kVec> add = args.residual.template load_once<kVec>(residual_offset + c);
#pragma unroll
    for (int i = 0; i < kVec; ++i) sum[i] = from_float<T>(to_float(sum[i]) + to_float(add[i]));
  }
  return sum;
}

// kHeld vectors of kVec elements a thread, thread t of n holding vectors t, t + n, t + 2n, ...
// They stay in T: the sum is rounded to it anyway, and bf16 takes half the registers of fp32.
template <class T, int kVec, int kHeld>
struct HeldRow {
  Vec<T, kVec> at[kHeld];

  template <class F>
  __device__ __forceinline__ static void each(int64_t columns, F visit) {
#pragma unroll
    for (int h = 0; h < kHeld; ++h) {
      const int64_t c = (static_cast<int64_t>(h) * blockDim.x + threadIdx.x) * kVec;
      if (c < columns) visit(h, c);
    }
  }

  // All loads are issued before any value is used.
  __device__ __forceinline__ void load(const NormArgs<T>& args, int64_t row) {
    const int64_t from = args.x_rows.offset(row);
    const int64_t residual_from = args.residual ? args.residual_rows.offset(row) : 0;
    each(args.columns,
         [&](int h, int64_t c) { at[h] = sum_at<T, kVec>(args, from, residual_from, c); });
    if (args.residual) {
      each(args.columns,
           [&](int h, int64_t c) { args.total.store(row * args.columns + c, at[h]); });
    }
  }

  // The sum of f(element) over this thread's part of the row.
  template <class F>
  __device__ __forceinline__ float sum(int64_t columns, F f) const {
    float total = 0.0f;
    each(columns, [&](int h, int64_t) {
#pragma unroll
      for (int i = 0; i < kVec; ++i) total += f(to_float(at[h][i]));
    });
    return total;
  }
};

// A row that registers do not hold, read again in each pass. The first pass is `first`, which
// writes the sum with the residual; later ones read that.
template <class T, int kVec>
struct LongRow {
  const NormArgs<T>& args;
  int64_t row;

  template <class F>
  __device__ __forceinline__ void first(F visit) const {
    const int64_t from = args.x_rows.offset(row);
    const int64_t residual_from = args.residual ? args.residual_rows.offset(row) : 0;
#pragma unroll 1
    for (int64_t c = threadIdx.x * kVec; c < args.columns; c += blockDim.x * kVec) {
      const Vec<T, kVec> sum = sum_at<T, kVec>(args, from, residual_from, c);
      if (args.residual) args.total.store(row * args.columns + c, sum);
      visit(c, sum);
    }
  }

  template <class F>
  __device__ __forceinline__ void again(F visit) const {
    const int64_t from = args.x_rows.offset(row);
#pragma unroll 1
    for (int64_t c = threadIdx.x * kVec; c < args.columns; c += blockDim.x * kVec) {
      visit(c, args.residual ? args.total.template load<kVec>(row * args.columns + c)
                             : args.x.template load<kVec>(from + c));
    }
  }
};

// Calls visit(row) for each row of this block's, or warp's, share.
template <class F>
__device__ __forceinline__ void over_rows(int64_t rows, F visit) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.y;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y; row < rows;
       row += step) {
    visit(row);
  }
}

}  // namespace flashvl::cuda
