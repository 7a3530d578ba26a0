// What the binding hands to the rope_qkv_backward kernels.
#pragma once

#include <cstdint>

#include "levels.h"
#include "types.h"

namespace flashvl::cpu {

// Gradients of heads: head h of row n at data + row * n + head * h, channels contiguous.
struct RopeHeads {
  const void* data;
  int64_t row;
  int64_t head;
};

// As in RopeQkvArgs where not said otherwise.
struct RopeQkvBackwardArgs {
  DType dtype;
  DType table_dtype;
  RopeHeads q, k, v;
  const void* cos;
  int64_t cos_stride;
  const void* sin;
  int64_t sin_stride;
  const int64_t* positions;
  int64_t heads;
  int64_t kv_heads;
  int64_t half;
  void* dqkv;  // contiguous rows
};

// Computes rows [begin, end).
using RopeQkvBackwardRows = void(const RopeQkvBackwardArgs& args, int64_t begin, int64_t end);
FLASHVL_DECLARE_KERNEL(RopeQkvBackwardRows, rope_qkv_backward)

}  // namespace flashvl::cpu
