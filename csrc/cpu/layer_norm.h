// What the binding hands to the layer_norm kernels.
#pragma once

#include <cstdint>

#include "levels.h"
#include "types.h"

namespace flashvl::cpu {

// Strides count elements between rows; columns are contiguous. y and total are contiguous rows.
struct LayerNormArgs {
  DType dtype;
  const void* x;
  int64_t x_stride;
  const void* residual;  // null: no residual, and total is not written
  int64_t residual_stride;
  const void* weight;
  const void* bias;
  void* y;
  void* total;
  int64_t columns;
  float eps;
};

// Normalises rows [begin, end).
using LayerNormRows = void(const LayerNormArgs& args, int64_t begin, int64_t end);
FLASHVL_DECLARE_KERNEL(LayerNormRows, layer_norm)

}  // namespace flashvl::cpu
