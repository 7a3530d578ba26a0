// What the binding hands to the norm_backward kernels.
#pragma once

#include <cstdint>

#include "levels.h"
#include "types.h"

namespace flashvl::cpu {

// Strides count elements between rows; dx is contiguous rows. Each of `tasks` ranges of rows has
// sums of its own in `memory`, task_bytes apart.
struct NormBackwardArgs {
  DType dtype;
  int64_t rows;
  int64_t columns;
  const void* grad;
  int64_t grad_stride;
  const void* x;
  int64_t x_stride;
  const void* weight;
  bool layer;  // LayerNorm; else RMSNorm
  float eps;
  const void* add;  // or null: a gradient that x has from elsewhere
  int64_t add_stride;
  void* dx;
  void* dweight;
  void* dbias;  // written where `layer`
  char* memory;
  int64_t task_bytes;
  int64_t tasks;
};

// Bytes of sums that a task needs.
using NormBackwardBytes = int64_t(const NormBackwardArgs& args);
FLASHVL_DECLARE_KERNEL(NormBackwardBytes, norm_backward_bytes)

using NormBackwardTask = void(const NormBackwardArgs& args, int64_t task);
FLASHVL_DECLARE_KERNEL(NormBackwardTask, norm_backward)

// Adds up what the tasks have.
using NormBackwardSum = void(const NormBackwardArgs& args);
FLASHVL_DECLARE_KERNEL(NormBackwardSum, norm_backward_sum)

}  // namespace flashvl::cpu
