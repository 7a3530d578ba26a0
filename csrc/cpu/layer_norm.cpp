// LayerNorm of rows, after an optional residual add (Ba, Kiros and Hinton, arXiv 1607.06450).
//
// Bound by bytes. The variance is that of the deviations from a value near the mean (row_norm.h),
// never E[x^2] - E[x]^2, which cancels where the mean is far above the spread; their own mean is
// taken out again, as in the corrected two-pass algorithm of Chan, Golub and LeVeque (The American
// Statistician 37, 1983). The result is rounded once, as torch.nn.LayerNorm does.

#include "layer_norm.h"

#include "norm_rows.h"

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

template <class T>
void layer_norm_rows(const LayerNormArgs& args, int64_t begin, int64_t end) {
  normalise_rows(args, static_cast<const T*>(args.bias), begin, end);
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
