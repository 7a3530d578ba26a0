// RMSNorm of rows, after an optional residual add (Zhang and Sennrich, arXiv 1910.07467).
//
// Bound by bytes: 2 (4 with a residual) row sizes a row, 4 FLOPs an element. A row is read once,
// in 16-byte accesses of which each thread has up to 8 under way, and stays in registers. The
// weight is read for every row, from the first-level cache: held over the rows it is held in fp32,
// and sm_100 spills. Few columns: a warp a row, no barrier. Many columns, or too few rows to fill
// the device with warps: a block a row. Rounding follows Hugging Face's Qwen2: the sum is rounded
// to the dtype, the normalised value before the weight multiplies it, and the product once more.
#pragma once

#include "norm_row.cuh"

namespace flashvl::cuda {

template <class T, int kVec>
__device__ __forceinline__ Vec<T, kVec> rms_scaled(const Vec<T, kVec>& row,
                                                   const Vec<T, kVec>& weight, float scale) {
  Vec<T, kVec> y;
#pragma unroll
  for (int i = 0; i < kVec; ++i) {
    y[i] = from_float<T>(round_to<T>(to_float(row[i]) * scale) * to_float(weight[i]));
  }
  return y;
}

// Correctly rounded root and division: the approximate ones err by 2 units for a whole row alike.
__device__ __forceinline__ float rms_scale(float squares, int64_t columns, float eps) {
  return 1.0f / sqrtf(squares / static_cast<float>(columns) + eps);
}

template <class T, int kVec, int kHeld, bool kBlockRow>
__global__ void __launch_bounds__(kNormThreads<kBlockRow>, kNormBlocks<kBlockRow, kHeld>)
    rms_norm_kernel(NormArgs<T> args) {
  RowSum<kBlockRow> row_sum;
  HeldRow<T, kVec, kHeld> held;
  over_rows(args.rows, [&](int64_t row) {
    held.load(args, row);
    const float squares = row_sum(held.sum(args.columns, [](float v) { return v * v; }));
    const float scale = rms_scale(squares, args.columns, args.eps);
    held.each(args.columns, [&](int h, int64_t c) {
      const Vec<T, kVec> weight = args.weight.template load<kVec>(c);
      args.y.store(row * args.columns + c, rms_scaled(held.at[h], weight, scale));
    });
  });
}

// Rows too long for the registers of a block: the second pass finds them in the L2 cache.
template <class T, int kVec>
__global__ void __launch_bounds__(kNormThreads<true>) rms_norm_long_kernel(NormArgs<T> args) {
  RowSum<true> row_sum;
  over_rows(args.rows, [&](int64_t row) {
    const LongRow<T, kVec> values{args, row};
    float squares = 0.0f;
    values.first([&](int64_t, const Vec<T, kVec>& v) {
#pragma unroll
      for (int i = 0; i < kVec; ++i) squares += to_float(v[i]) * to_float(v[i]);
    });
    const float scale = rms_scale(row_sum(squares), args.columns, args.eps);
    values.again([&](int64_t c, const Vec<T, kVec>& v) {
      const Vec<T, kVec> weight = args.weight.template load<kVec>(c);
      args.y.store(row * args.columns + c, rms_scaled(v, weight, scale));
    });
  });
}

}  // namespace flashvl::cuda
