// What follows a product, in fp32, rounded once: scale, bias, activation, residual.
#pragma once

#include "../linear.h"
#include "../vec_math.h"
#include "row_layout.h"
#include "row_norm.h"

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

// Calls f(activation) with activation(F32) -> F32, so that loops over rows do not choose again.
template <class Function>
inline void with_activation(Activation activation, Function f) {
  switch (activation) {
    case Activation::gelu:
      return f([](F32 x) { return gelu_erf(x); });
    case Activation::gelu_tanh:
      return f([](F32 x) { return gelu_tanh(x); });
    case Activation::silu:
    case Activation::swiglu:
      return f([](F32 x) { return silu(x); });
    case Activation::none:
      return f([](F32 x) { return x; });
  }
}

// kLanes columns of results: what is the same for every row. The scale is that of int8 rows (few
// rows have it applied already); one and zero where there is none.
template <class T>
struct Columns {
  int64_t first, count;
  F32 scale, up_scale, bias;

  Columns(const ProductArgs& args, int64_t column)
      : first(column), count(args.w.rows - column), bias(zero()) {
    if (count > kLanes) count = kLanes;
    if (count <= 0) return;
    scale = scale_of(args, args.w);
    up_scale = scale_of(args, args.up);
    if (args.bias != nullptr) bias = load_up_to(static_cast<const T*>(args.bias) + first, count);
  }

 private:
  F32 scale_of(const ProductArgs& args, const Weights& w) const {
    const bool scaled = w.format == WeightFormat::int8 && !args.plan.few;
    return scaled ? load_up_to(w.scale + first, count) : splat(1.0f);
  }
};

// Adds the residual and writes a row's results. Element and next: those of the following product,
// for Output::packed.
template <class T, class Element, class Layout>
inline void write(const ProductArgs& args, const Layout& next, int64_t row,
                  const Columns<T>& columns, F32 v) {
  const int64_t c = columns.first, n = columns.count;
  if (args.residual != nullptr) {
    const T* residual = static_cast<const T*>(args.residual) + row * args.residual_stride;
    v = v + load_up_to(residual + c, n);
  }
  if (args.output == Output::rows) {
    store_up_to(static_cast<T*>(args.out) + row * args.out_stride + c, v, n);
  } else if (args.output == Output::floats) {
    store_up_to(static_cast<float*>(args.out) + row * args.out_stride + c, round_to<T>(v), n);
  } else {
    store_up_to(static_cast<Element*>(args.out) + next.at(row, c), v, n);
  }
}

// The results of 16 columns for `rows` rows from `row` on. sums_of(r, panel) gives the 16 sums of a
// row with the panel (0), and for swiglu with the panel of up (1).
template <class T, class Element, class Layout, class SumsOf>
inline void finish(const ProductArgs& args, const Layout& next, int64_t column, int64_t row,
                   int64_t rows, SumsOf sums_of) {
  with_activation(args.activation, [&](auto activation) {
    for (int64_t i = 0; i < kPanel; i += kLanes) {
      const Columns<T> columns(args, column + i);
      if (columns.count <= 0) return;
      for (int64_t r = 0; r < rows; ++r) {
        F32 v = activation(fma(load(sums_of(r, 0) + i), columns.scale, columns.bias));
        if (args.activation == Activation::swiglu)
          v = v * (load(sums_of(r, 1) + i) * columns.up_scale);
        write<T, Element>(args, next, row + r, columns, v);
      }
    }
  });
}

}  // namespace
}  // namespace flashvl::cpu::FLASHVL_LEVEL
