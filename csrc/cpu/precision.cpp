// See precision.h.

#include "precision.h"

#include "matrix/dense_product.h"

#if !defined(FLASHVL_LEVEL_scalar)

namespace flashvl::cpu::FLASHVL_LEVEL {

bool has_bf16_product() { return kHasBF16Product; }

}  // namespace flashvl::cpu::FLASHVL_LEVEL

#endif
