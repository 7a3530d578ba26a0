// LayerNorm of rows, after an optional residual add (Ba, Kiros and Hinton, arXiv 1607.06450).
//
// Bound by bytes: 2 (4 with a residual) row sizes a row, 8 FLOPs an element. As in rms_norm.cuh a
// row is read once and stays in registers, so the variance is that of the deviations from the mean,
// not a difference of two large sums. Rounding follows torch.nn.LayerNorm: the sum with the
// residual is rounded to the dtype; mean, variance and the affine map are fp32, rounded once.
#pragma once

#include "norm_row.cuh"

namespace flashvl::cuda {

template <class T, int kVec>
__device__ __forceinline__ Vec<T, kVec> layer_mapped(const Vec<T, kVec>& row,
                                                     const Vec<T, kVec>& weight,
                                                     const Vec<T, kVec>& bias, float mean,
                                                     float scale) {
  Vec<T, kVec> y;
#pragma unroll
  for (int i = 0; i < kVec; ++i) {
    const float normal = (to_float(row[i]) - mean) * scale;
    y[i] = from_float<T>(fmaf(normal, to_float(weight[i]), to_float(bias[i])));
  }
  return y;
}

// Correctly rounded root and division: the approximate ones err by 2 units for a whole row alike.
__device__ __forceinline__ float layer_scale(float squares, float columns, float eps) {
  return 1.0f / sqrtf(squares / columns + eps);
}

template <class T, int kVec, int kHeld, bool kBlockRow>
__global__ void __launch_bounds__(kNormThreads<kBlockRow>, kNormBlocks<kBlockRow, kHeld>)
    layer_norm_kernel(NormArgs<T> args) {
  RowSum<kBlockRow> row_sum;
  HeldRow<T, kVec, kHeld> held;
  const float columns = static_cast<float>(args.columns);
  over_rows(args.rows, [&](int64_t row) {
    held.load(args, row);
    const float mean = row_sum(held.sum(args.columns, [](float v) { return v; })) / columns;
    const float squares =
        row_sum(held.sum(args.columns, [&](float v) { return (v - mean) * (v - mean); }));
    const float scale = layer_scale(squares, columns, args.eps);
    held.each(args.columns, [&](int h, int64_t c) {
      args.y.store(row * args.columns + c,
                   layer_mapped(held.at[h], args.weight.template load<kVec>(c),
                                args.bias.template load<kVec>(c), mean, scale));
    });
  });
}

// Rows too long for the registers of a block: later passes find them in the L2 cache.
template <class T, int kVec>
__global__ void __launch_bounds__(kNormThreads<true>) layer_norm_long_kernel(NormArgs<T> args) {
  RowSum<true> row_sum;
  const float columns = static_cast<float>(args.columns);
  over_rows(args.rows, [&](int64_t row) {
    const LongRow<T, kVec> values{args, row};
    float sum = 0.0f, squares = 0.0f;
    values.first([&](int64_t, const Vec<T, kVec>& v) {
#pragma unroll
      for (int i = 0; i < kVec; ++i) sum += to_float(v[i]);
    });
    const float mean = row_sum(sum) / columns;
    values.again([&](int64_t, const Vec<T, kVec>& v) {
#pragma unroll
      for (int i = 0; i < kVec; ++i) squares += (to_float(v[i]) - mean) * (to_float(v[i]) - mean);
    });
    const float scale = layer_scale(row_sum(squares), columns, args.eps);
    values.again([&](int64_t c, const Vec<T, kVec>& v) {
      args.y.store(row * args.columns + c,
                   layer_mapped(v, args.weight.template load<kVec>(c),
                                args.bias.template load<kVec>(c), mean, scale));
    });
  });
}

}  // namespace flashvl::cuda
