// What the bindings of linear_backward and swiglu_mlp_backward hand to their kernels.
//
// Four steps with barriers between them: the weights are packed, tasks go over ranges of rows with
// sums of their own, and the sums of the tasks are added up. In fp32, at levels with vectors.
#pragma once

#include <cstdint>

#include "levels.h"
#include "linear.h"

namespace flashvl::cpu {

// Strides count elements between rows. Where `down` is there the op is swiglu_mlp: w holds gate and
// up, dy has the columns of x and is also a gradient of x itself.
struct ProductBackwardArgs {
  int64_t rows;
  int64_t columns;  // of x
  int64_t outputs;  // rows of w
  int64_t width;    // columns of down
  const float* x;
  int64_t x_stride;
  const float* dy;
  int64_t dy_stride;
  const float* w;
  int64_t w_stride;
  const float* down;  // or null
  int64_t down_stride;
  const float* bias;  // or null
  Activation activation;
  const float* norm_weight;  // null: no norm
  const float* norm_bias;    // null: RMSNorm; else LayerNorm
  float eps;
  bool bf16;  // numbers may be rounded to bf16 before they are multiplied
  // Results, contiguous; null where not wanted.
  float* dx;
  float* dw;
  float* ddown;
  float* dbias;
  float* dnorm_weight;
  float* dnorm_bias;
  // Working memory, as ProductBackwardSizes says.
  char* packed;
  char* memory;
  int64_t tasks;
};

struct ProductBackwardSizes {
  int64_t packed_bytes;
  int64_t packed_blocks;
  int64_t task_bytes;
  int64_t sum_rows;  // of all the sums to add up
};

using ProductBackwardPlan = ProductBackwardSizes(const ProductBackwardArgs& args);
FLASHVL_DECLARE_KERNEL(ProductBackwardPlan, product_backward_plan)

// Packs blocks [begin, end) of packed_blocks.
using ProductBackwardPack = void(const ProductBackwardArgs& args, int64_t begin, int64_t end);
FLASHVL_DECLARE_KERNEL(ProductBackwardPack, product_backward_pack)

// One of `tasks` ranges of rows.
using ProductBackwardTask = void(const ProductBackwardArgs& args, int64_t task);
FLASHVL_DECLARE_KERNEL(ProductBackwardTask, product_backward)

// Adds up rows [begin, end) of sum_rows.
using ProductBackwardSum = void(const ProductBackwardArgs& args, int64_t begin, int64_t end);
FLASHVL_DECLARE_KERNEL(ProductBackwardSum, product_backward_sum)

}  // namespace flashvl::cpu
