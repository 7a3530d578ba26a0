// What the bindings of linear, swiglu_mlp and gelu_mlp hand to the matrix product's kernels.
//
// A product runs in two steps, with a barrier between them: pack_rows brings the activations into
// the order the multiplication reads, normalised; product multiplies them by weight panels and
// applies the epilogue. An MLP is one pack_rows and two products: the first writes its result in
// the packed order of the second.
#pragma once

#include <cstdint>

#include "levels.h"
#include "matrix/weights.h"
#include "types.h"

namespace flashvl::cpu {

// swiglu: silu(x w) * (x up).
enum class Activation : int { none, gelu, gelu_tanh, silu, swiglu };

// Where results go: rows of the op's dtype; the packed rows of a following product; fp32 rows,
// which pack_rows turns into the packed rows of a following product with few rows.
enum class Output : int { rows, packed, floats };

// How a product is cut up; product_plan fills it in.
struct ProductPlan {
  bool few;                 // few enough rows for few_rows.h
  int64_t units;            // 16 or 32 columns of the result each
  int64_t tasks;            // what threads share: row_parts times as many ranges of units
  int64_t row_parts;        // ranges of blocks of rows
  int64_t packed_rows;      // rows of packed memory, with padding
  int64_t packed_bytes;     // of all packed rows
  int64_t workspace_bytes;  // a task needs
  int64_t block_rows;       // rows that stay in the cache while the weights pass by
  int64_t chunk_steps;      // steps of kDepth columns that do
  int64_t inner_steps;      // steps that sums stay in registers
  int64_t group_units;      // units that take turns at a chunk
  int64_t sum_units;        // units whose sums are kept
  int64_t finish_rows;      // rows to finish while a block of rows is multiplied
};

struct ProductArgs {
  ProductPlan plan;
  DType dtype;
  int64_t threads;  // to plan for
  int64_t rows;
  const void* packed;  // the activations, as pack_rows left them
  Weights w;
  Weights up;  // for swiglu: w is the gate
  Activation activation;
  const void* bias;      // or null
  const void* residual;  // or null
  int64_t residual_stride;
  Output output;
  void* out;
  int64_t out_stride;  // of rows and floats, in elements
};

// The activations of a product with `rows`, `w` and `plan` as in its ProductArgs.
struct PackArgs {
  ProductPlan plan;
  DType dtype;
  int64_t rows;
  Weights w;
  bool floats;  // x is fp32 whatever dtype says, and has no norm
  const void* x;
  int64_t x_stride;
  const void* norm_weight;  // null: no norm
  const void* norm_bias;    // null: RMSNorm; else LayerNorm
  float eps;
  void* packed;
};

using PlanProduct = ProductPlan(const ProductArgs& args);
FLASHVL_DECLARE_KERNEL(PlanProduct, product_plan)

// Packs rows [begin, end) of plan.packed_rows; all of them in one call where plan.few.
using PackRows = void(const PackArgs& args, int64_t begin, int64_t end);
FLASHVL_DECLARE_KERNEL(PackRows, pack_rows)

// Computes the share of one of plan.tasks. The workspace is the task's own and aligned to 64.
using Product = void(const ProductArgs& args, int64_t task, void* workspace);
FLASHVL_DECLARE_KERNEL(Product, product)

}  // namespace flashvl::cpu
