// What csrc/torch/precision.cpp asks of a level.
#pragma once

#include "levels.h"

namespace flashvl::cpu {

// Whether dense_product.h has a product of bf16 beside that of fp32 here.
using HasBF16Product = bool();
FLASHVL_DECLARE_KERNEL(HasBF16Product, has_bf16_product)

}  // namespace flashvl::cpu
