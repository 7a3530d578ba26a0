// linear, swiglu_mlp and gelu_mlp in fp32 (matrix/dense_product.h) for weights that stay in the
// cache: what training asks for.
//
// Bound by FLOPs. A few hundred rows at a time go through norm, product, activation and the second
// product, so that no intermediate result is written to memory.

#include "product_chain.h"

#include "matrix/dense_product.h"
#include "matrix/normalised_row.h"
#include "matrix/product_parts.h"
#include "vec_math.h"

#if !defined(FLASHVL_LEVEL_scalar)

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

constexpr int64_t kFloat = sizeof(float);

int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// Rows of a product's weights: gate and up together.
int64_t outputs_of(const ProductArgs& p) { return is_gated(p) ? 2 * p.w.rows : p.w.rows; }

MatrixSource weights_of(const ProductArgs& p) {
  return {static_cast<const float*>(p.w.data), p.w.row_stride, 1, outputs_of(p), p.w.columns};
}

template <class P>
int64_t bytes_of(const ProductArgs& p) {
  return P::operand_bytes(outputs_of(p), p.w.columns);
}

template <class P>
typename P::Element* packed_of(const ProductChainArgs& args, bool second) {
  return reinterpret_cast<typename P::Element*>(args.packed +
                                                (second ? bytes_of<P>(args.first) : 0));
}

// Where a task's rows lie, in bytes from its start.
template <class P>
struct Memory {
  static constexpr int64_t kRows = P::kChainRows;
  int64_t rows, parts, sums, bytes;

  explicit Memory(const ProductChainArgs& args) : rows(0) {
    const int64_t width =
        args.two ? larger(args.first.w.columns, args.second.w.columns) : args.first.w.columns;
    const int64_t outputs = larger(outputs_of(args.first), args.two ? outputs_of(args.second) : 0);
    parts = rows + kRows * padded<P>(width) * kFloat;
    sums = parts + P::operand_bytes(kRows, width);
    bytes = sums + kRows * padded<P>(outputs) * kFloat;
  }
};

// `count` rows of the product, at `to`, padded.
template <class P>
void multiply(const typename P::Operand& left, const ProductChainArgs& args, bool second,
              float* to) {
  const ProductArgs& p = second ? args.second : args.first;
  const MatrixSource weights = weights_of(p);
  P::multiply_operands(left, {weights, packed_of<P>(args, second)}, to, padded<P>(weights.rows),
                       false);
}

// Row r of a product after its epilogue.
template <class Activate>
void finish_row(const ProductArgs& p, const float* sums, int64_t r, float* to, Activate activate) {
  const float* bias = static_cast<const float*>(p.bias);
  const float* residual = static_cast<const float*>(p.residual);
  if (residual != nullptr) residual += r * p.residual_stride;
  const bool gated = is_gated(p);
  over_columns(p.w.rows, [&](int64_t c, auto n) {
    F32 value = load_at(sums + c, n);
    if (bias != nullptr) value = value + load_at(bias + c, n);
    value = activate(value);
    if (gated) value = value * load_at(sums + p.w.rows + c, n);
    if (residual != nullptr) value = value + load_at(residual + c, n);
    store_at(to + c, value, n);
  });
}

void finish_row(const ProductArgs& p, const float* sums, int64_t r, float* to) {
  switch (p.activation) {
    case Activation::gelu:
      return finish_row(p, sums, r, to, [](F32 v) { return gelu_erf(v); });
    case Activation::gelu_tanh:
      return finish_row(p, sums, r, to, [](F32 v) { return gelu_tanh(v); });
    case Activation::silu:
    case Activation::swiglu:
      return finish_row(p, sums, r, to, [](F32 v) { return silu(v); });
    case Activation::none:
      return finish_row(p, sums, r, to, [](F32 v) { return v; });
  }
}

// Rows [row, row + count).
template <class P>
void run_rows(const ProductChainArgs& args, char* memory, int64_t row, int64_t count) {
  const Memory<P> at(args);
  float* rows = reinterpret_cast<float*>(memory + at.rows);
  auto* parts = reinterpret_cast<typename P::Element*>(memory + at.parts);
  float* sums = reinterpret_cast<float*>(memory + at.sums);
  const int64_t columns = args.first.w.columns;
  MatrixSource left = {args.x + row * args.x_stride, args.x_stride, 1, count, columns};
  if (args.norm_weight != nullptr) {
    const RowNorm<float> norm = {args.norm_weight, args.norm_bias, args.eps};
    for (int64_t r = 0; r < count; ++r) {
      normalise(left.data + r * left.row, rows + r * padded<P>(columns), columns, norm);
    }
    left = {rows, padded<P>(columns), 1, count, columns};
  }
  multiply<P>(pack_all<P, false>(left, parts), args, false, sums);
  const ProductArgs& last = args.two ? args.second : args.first;
  if (args.two) {
    const int64_t width = args.second.w.columns, from = padded<P>(outputs_of(args.first));
    for (int64_t r = 0; r < count; ++r) {
      finish_row(args.first, sums + r * from, row + r, rows + r * padded<P>(width));
    }
    left = {rows, padded<P>(width), 1, count, width};
    multiply<P>(pack_all<P, false>(left, parts), args, true, sums);
  }
  const int64_t from = padded<P>(outputs_of(last));
  for (int64_t r = 0; r < count; ++r) {
    float* out = static_cast<float*>(last.out) + (row + r) * last.out_stride;
    finish_row(last, sums + r * from, row + r, out);
  }
}

}  // namespace

ProductChainSizes product_chain_plan(const ProductChainArgs& args) {
  return with_product(args.bf16, [&]<class P>(P) -> ProductChainSizes {
    const int64_t first = operand_blocks<P>(outputs_of(args.first));
    const int64_t second = args.two ? operand_blocks<P>(outputs_of(args.second)) : 0;
    const int64_t bytes = bytes_of<P>(args.first) + (args.two ? bytes_of<P>(args.second) : 0);
    return {bytes, first + second, Memory<P>(args).bytes};
  });
}

void product_chain_pack(const ProductChainArgs& args, int64_t begin, int64_t end) {
  with_product(args.bf16, [&]<class P>(P) {
    const int64_t first = operand_blocks<P>(outputs_of(args.first));
    for (int64_t block = begin; block < end; ++block) {
      const bool second = block >= first;
      P::template pack_operand<true>(weights_of(second ? args.second : args.first),
                                     block - (second ? first : 0), packed_of<P>(args, second));
    }
  });
}

void product_chain(const ProductChainArgs& args, int64_t task) {
  const int64_t rows = args.first.rows;
  const int64_t begin = rows * task / args.tasks, end = rows * (task + 1) / args.tasks;
  with_product(args.bf16, [&]<class P>(P) {
    constexpr int64_t kRows = P::kChainRows;
    char* memory = args.memory + task * Memory<P>(args).bytes;
    for (int64_t row = begin; row < end; row += kRows) {
      run_rows<P>(args, memory, row, end - row < kRows ? end - row : kRows);
    }
  });
}

}  // namespace flashvl::cpu::FLASHVL_LEVEL

#endif
