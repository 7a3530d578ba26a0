// RMSNorm of rows, after an optional residual add (Zhang and Sennrich, arXiv 1910.07467).
//
// Bound by bytes. Memory is passed over once: the second sweep over a row finds it in the
// first-level cache (a row of 1536 bf16 values is 3 KiB). Rounding follows Hugging Face's Qwen2:
// the sum is rounded to the dtype, the normalised value is rounded before the weight multiplies it,
// and the product once more.

#include "rms_norm.h"

#include "norm_rows.h"

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

template <class T>
void normalise_row(const RmsNormArgs& args, const NormRow<T>& row, T* y) {
  const T* weight = static_cast<const T*>(args.weight);
  const F32 squares = sum_columns<F32>(args.columns, [&](F32 sum, int64_t c, auto n) {
    const F32 s = sum_at(row, c, n);
    return fma(s, s, sum);
  });
  // In double, once a row: a whole row must not err the same way.
  const double mean = reduce_add(squares) / static_cast<double>(args.columns);
  const F32 scale = splat(static_cast<float>(1.0 / __builtin_sqrt(mean + args.eps)));
  over_columns(args.columns, [&](int64_t c, auto n) {
    fetch(row.next + c);
    store_at(y + c, round_to<T>(load_at(row.values + c, n) * scale) * load_at(weight + c, n), n);
  });
}

template <class T>
void rms_norm_rows(const RmsNormArgs& args, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    normalise_row(args, norm_row<T>(args, r), static_cast<T*>(args.y) + r * args.columns);
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
