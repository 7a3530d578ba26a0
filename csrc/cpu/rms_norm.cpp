// RMSNorm of rows, after an optional residual add (Zhang and Sennrich, arXiv 1910.07467).
//
// Bound by bytes. Rounding follows Hugging Face's Qwen2: the sum is rounded to the dtype, the
// normalised value is rounded before the weight multiplies it, and the product once more.

#include "rms_norm.h"

#include "norm_rows.h"

namespace flashvl::cpu::FLASHVL_LEVEL {

void rms_norm(const RmsNormArgs& args, int64_t begin, int64_t end) {
  switch (args.dtype) {
    case DType::f32:
      return normalise_rows<float>(args, nullptr, begin, end);
    case DType::bf16:
      return normalise_rows<BF16>(args, nullptr, begin, end);
    case DType::f16:
      return normalise_rows<F16>(args, nullptr, begin, end);
  }
}

}  // namespace flashvl::cpu::FLASHVL_LEVEL
