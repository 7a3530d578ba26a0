// LayerNorm of rows, after an optional residual add (Ba, Kiros and Hinton, arXiv 1607.06450).
//
// Bound by bytes: memory is passed over once, and the later sweeps over a row find it in the
// first-level cache (a row of 1152 bf16 values is 2.25 KiB). The variance is that of the deviations
// from the mean, never E[x^2] - E[x]^2, which cancels where the mean is far above the spread. The
// mean itself, rounded to fp32, is off by up to 2^-24 of its size; the sum of the deviations says
// by how much, and takes that out again (the corrected two-pass algorithm of Chan, Golub and
// LeVeque, The American Statistician 37, 1983). What is done once a row is
// done in double, so that a whole row does not err the same way. The result is rounded once, as
// torch.nn.LayerNorm does.

#include "layer_norm.h"

#include "norm_rows.h"

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

struct Deviations {
  F32 sum, squares;
};

inline Deviations operator+(Deviations a, Deviations b) {
  return {a.sum + b.sum, a.squares + b.squares};
}

template <class T>
inline F32 deviation_at(const T* values, F32 mean, Whole) {
  return load(values) - mean;
}

// Columns that the row lacks deviate by nothing.
template <class T>
inline F32 deviation_at(const T* values, F32 mean, int64_t n) {
  return load_some(values, n) - keep_first(mean, n);
}

template <class T>
void normalise_row(const LayerNormArgs& args, const NormRow<T>& row, T* y) {
  const T* weight = static_cast<const T*>(args.weight);
  const T* bias = static_cast<const T*>(args.bias);
  const F32 sum = sum_columns<F32>(args.columns,
                                   [&](F32 s, int64_t c, auto n) { return s + sum_at(row, c, n); });
  const F32 mean = splat(reduce_add(sum) / static_cast<float>(args.columns));
  const auto deviations =
      sum_columns<Deviations>(args.columns, [&](Deviations s, int64_t c, auto n) {
        const F32 d = deviation_at(row.values + c, mean, n);
        return Deviations{s.sum + d, fma(d, d, s.squares)};
      });
  const double off = reduce_add(deviations.sum) / static_cast<double>(args.columns);
  const double square = reduce_add(deviations.squares) / static_cast<double>(args.columns);
  const double rstd = 1.0 / __builtin_sqrt(square - off * off + args.eps);
  const F32 scale = splat(static_cast<float>(rstd)), shift = splat(static_cast<float>(-off * rstd));
  over_columns(args.columns, [&](int64_t c, auto n) {
    fetch(row.next + c);
    const F32 normal = fma(load_at(row.values + c, n) - mean, scale, shift);
    store_at(y + c, fma(normal, load_at(weight + c, n), load_at(bias + c, n)), n);
  });
}

template <class T>
void layer_norm_rows(const LayerNormArgs& args, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    normalise_row(args, norm_row<T>(args, r), static_cast<T*>(args.y) + r * args.columns);
  }
}

}  // namespace

void layer_norm(const LayerNormArgs& args, int64_t begin, int64_t end) {
  switch (args.dtype) {
    case DType::f32:
      return layer_norm_rows<float>(args, begin, end);
    case DType::bf16:
      return layer_norm_rows<BF16>(args, begin, end);
    case DType::f16:
      return layer_norm_rows<F16>(args, begin, end);
  }
}

}  // namespace flashvl::cpu::FLASHVL_LEVEL
