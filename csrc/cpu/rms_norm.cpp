// RMSNorm of rows, after an optional residual add (Zhang and Sennrich, arXiv 1910.07467).
//
// Memory is passed over once: the second sweep over a row finds it in the first-level cache (a row
// of 1536 bf16 values is 3 KiB). Rounding follows Hugging Face's Qwen2: the sum is rounded to the
// dtype, the normalised value is rounded before the weight multiplies it, and the product once
// more.

#include "rms_norm.h"

#include "vec.h"

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

// A fused multiply-add takes 4 cycles and two start per cycle: with one running sum the squares
// would wait on each other, with four the loads are the limit.
constexpr int kSums = 4;

// x + residual rounded to T (x itself without a residual), as fp32 lanes; n < kLanes at a row's
// end.
template <class T>
F32 sum_at(const T* x, const T* residual, T* total, int64_t c, int64_t n) {
  if (residual == nullptr) return load_some(x + c, n);
  const F32 sum = round_to<T>(load_some(x + c, n) + load_some(residual + c, n));
  store_some(total + c, sum, n);
  return sum;
}

template <class T>
F32 sum_at(const T* x, const T* residual, T* total, int64_t c) {
  if (residual == nullptr) return load(x + c);
  const F32 sum = round_to<T>(load(x + c) + load(residual + c));
  store(total + c, sum);
  return sum;
}

// The sum of squares of x + residual; writes that sum to total where there is a residual.
template <class T>
float sum_of_squares(const T* x, const T* residual, T* total, int64_t columns) {
  F32 sums[kSums] = {zero(), zero(), zero(), zero()};
  int64_t c = 0;
  for (; c + kSums * kLanes <= columns; c += kSums * kLanes) {
#pragma GCC unroll 4
    for (int k = 0; k < kSums; ++k) {
      const F32 s = sum_at(x, residual, total, c + k * kLanes);
      sums[k] = fma(s, s, sums[k]);
    }
  }
  for (; c + kLanes <= columns; c += kLanes) {
    const F32 s = sum_at(x, residual, total, c);
    sums[0] = fma(s, s, sums[0]);
  }
  if (c < columns) {
    const F32 s = sum_at(x, residual, total, c, columns - c);
    sums[1] = fma(s, s, sums[1]);
  }
  return reduce_add((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

template <class T>
void normalise_row(const T* row, const T* weight, T* y, int64_t columns, float scale) {
  const F32 scales = splat(scale);
  int64_t c = 0;
  for (; c + kLanes <= columns; c += kLanes) {
    store(y + c, round_to<T>(load(row + c) * scales) * load(weight + c));
  }
  if (c < columns) {
    const int64_t n = columns - c;
    store_some(y + c, round_to<T>(load_some(row + c, n) * scales) * load_some(weight + c, n), n);
  }
}

template <class T>
void rms_norm_rows(const RmsNormArgs& args, int64_t begin, int64_t end) {
  const int64_t columns = args.columns;
  const T* weight = static_cast<const T*>(args.weight);
  for (int64_t r = begin; r < end; ++r) {
    const T* x = static_cast<const T*>(args.x) + r * args.x_stride;
    const T* residual = nullptr;
    T* total = nullptr;
    if (args.residual != nullptr) {
      residual = static_cast<const T*>(args.residual) + r * args.residual_stride;
      total = static_cast<T*>(args.total) + r * columns;
    }
    const float squares = sum_of_squares(x, residual, total, columns);
    const float scale = 1.0f / __builtin_sqrtf(squares / static_cast<float>(columns) + args.eps);
    T* y = static_cast<T*>(args.y) + r * columns;
    normalise_row(residual == nullptr ? x : total, weight, y, columns, scale);
  }
}

}  // namespace

void rms_norm(const RmsNormArgs& args, int64_t begin, int64_t end) {
  switch (args.dtype) {
    case DType::f32:
      return rms_norm_rows<float>(args, begin, end);
    case DType::bf16:
      return rms_norm_rows<BF16>(args, begin, end);
    case DType::f16:
      return rms_norm_rows<F16>(args, begin, end);
  }
}

}  // namespace flashvl::cpu::FLASHVL_LEVEL
