// The norm in front of a product: statistics of a row, and a kernel that writes normalised rows.
//
// Products of a few rows normalise what they load. Products of many rows read x once for each tile
// of columns, so there the rows are normalised first: normalising every fragment again would cost
// the tensor cores more than the bytes of x, which stay in the L2 cache. Rounding is that of
// flashvl_kernels/norm.py. Bound by bytes: x once and the result once.
#pragma once

#include "product.cuh"
#include "reduce.cuh"

namespace flashvl::cuda {

// scale: 1 over the root mean square, or over the deviation. LayerNorm: the mean, and what it lost
// to rounding, which matters in fp32 for rows far from zero.
struct Statistics {
  float scale, mean, slip;
};

template <class T>
__device__ __forceinline__ float normalised(float value, const Statistics& of, float weight,
                                            float bias, bool centred) {
  if (centred) return (value - of.mean - of.slip) * of.scale * weight + bias;
  return round_to<T>(value * of.scale) * weight;
}

// each(f) calls f(value) for every element of this thread's part of a row; sum(x) adds over the
// threads that share the row.
template <class E, class S>
__device__ __forceinline__ Statistics statistics_of(int64_t columns, float eps, bool centred,
                                                    const E& each, S& sum) {
  const float count = static_cast<float>(columns);
  Statistics of{0.0f, 0.0f, 0.0f};
  if (centred) {
    float total = 0.0f;
    each([&](float v) { total += v; });
    of.mean = sum(total) / count;
    float rest = 0.0f;
    each([&](float v) { rest += v - of.mean; });
    of.slip = sum(rest) / count;
  }
  float squares = 0.0f;
  each([&](float v) {
    const float away = v - of.mean - of.slip;
    squares += away * away;
  });
  of.scale = 1.0f / sqrtf(sum(squares) / count + eps);
  return of;
}

template <class T>
struct NormaliseArgs {
  Global<const T> x, weight, bias;  // bias null: RMSNorm
  Global<T> y;                      // [rows, padded]; zero past the columns
  Rows x_rows;
  int64_t rows, columns, padded;
  int64_t wide;  // x, weight and bias take 16 bytes at a time
  float eps;
};

template <int kVec, class T>
__device__ __forceinline__ Vec<T, kVec> load_some(Global<const T> from, int64_t at, int64_t left,
                                                  bool wide) {
  if (wide && left >= kVec) return from.template load<kVec>(at);
  Vec<T, kVec> values;
#pragma unroll
  for (int e = 0; e < kVec; ++e) values[e] = e < left ? from.load(at + e) : from_float<T>(0.0f);
  return values;
}

constexpr int kNormaliseThreads = 128;

// A block a row. Passes after the first find the row in the first-level cache.
template <class T>
__global__ void __launch_bounds__(kNormaliseThreads) normalise_kernel(NormaliseArgs<T> args) {
  constexpr int kVec = 16 / sizeof(T), kStep = kNormaliseThreads * kVec;
  RowSum<true> row_sum;
  const bool centred = static_cast<bool>(args.bias);
#pragma unroll 1
  for (int64_t row = blockIdx.x; row < args.rows; row += gridDim.x) {
    const int64_t from = args.x_rows.offset(row);
    const auto vector = [&](Global<const T> data, int64_t at, int64_t c) {
      return load_some<kVec>(data, at + c, args.columns - c, args.wide);
    };
    const auto each = [&](auto visit) {
#pragma unroll 2
      for (int64_t c = threadIdx.x * kVec; c < args.columns; c += kStep) {
        const Vec<T, kVec> values = vector(args.x, from, c);
#pragma unroll
        for (int e = 0; e < kVec; ++e) {
          if (c + e < args.columns) visit(to_float(values[e]));
        }
      }
    };
    const Statistics of = statistics_of(args.columns, args.eps, centred, each, row_sum);
#pragma unroll 1
    for (int64_t c = threadIdx.x * kVec; c < args.padded; c += kStep) {
      const Vec<T, kVec> x = vector(args.x, from, c), weight = vector(args.weight, 0, c);
      Vec<T, kVec> bias{}, y;
      if (centred) bias = vector(args.bias, 0, c);
#pragma unroll
      for (int e = 0; e < kVec; ++e) {
        const float value =
            normalised<T>(to_float(x[e]), of, to_float(weight[e]), to_float(bias[e]), centred);
        y[e] = from_float<T>(c + e < args.columns ? value : 0.0f);
      }
      args.y.store(row * args.padded + c, y);
    }
  }
}

}  // namespace flashvl::cuda
