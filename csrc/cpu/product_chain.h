// What csrc/torch/product.cpp hands to the kernels of fp32 products by small weights.
#pragma once

#include <cstdint>

#include "levels.h"
#include "linear.h"

namespace flashvl::cpu {

// One product with its prologue and epilogue, or two, the second on what the first gives. From each
// ProductArgs: rows, w, up, activation, bias, residual, out; weights are fp32 rows, and those of up
// lie behind those of the gate.
struct ProductChainArgs {
  ProductArgs first;
  ProductArgs second;
  bool two;
  const float* x;
  int64_t x_stride;
  const float* norm_weight;  // null: no norm
  const float* norm_bias;    // null: RMSNorm; else LayerNorm
  float eps;
  bool bf16;  // numbers may be rounded to bf16 before they are multiplied
  char* packed;
  char* memory;
  int64_t tasks;
};

struct ProductChainSizes {
  int64_t packed_bytes;
  int64_t packed_blocks;
  int64_t task_bytes;
};

using ProductChainPlan = ProductChainSizes(const ProductChainArgs& args);
FLASHVL_DECLARE_KERNEL(ProductChainPlan, product_chain_plan)

// Packs blocks [begin, end) of the weights.
using ProductChainPack = void(const ProductChainArgs& args, int64_t begin, int64_t end);
FLASHVL_DECLARE_KERNEL(ProductChainPack, product_chain_pack)

// One of `tasks` ranges of rows.
using ProductChainTask = void(const ProductChainArgs& args, int64_t task);
FLASHVL_DECLARE_KERNEL(ProductChainTask, product_chain)

}  // namespace flashvl::cpu
