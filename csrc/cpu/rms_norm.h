// What the binding hands to the rms_norm kernels.
#pragma once

#include <cstdint>

#include "levels.h"
#include "types.h"

namespace flashvl::cpu {

// Strides count elements between rows; columns are contiguous. y and total are contiguous rows.
struct RmsNormArgs {
  DType dtype;
  const void* x;
  int64_t x_stride;
  const void* residual;  // null: no residual, and total is not written
  int64_t residual_stride;
  const void* weight;
  void* y;
  void* total;
  int64_t columns;
  float eps;
};

// Normalises rows [begin, end).
using RmsNormRows = void(const RmsNormArgs& args, int64_t begin, int64_t end);
FLASHVL_DECLARE_KERNEL(RmsNormRows, rms_norm)

}  // namespace flashvl::cpu
