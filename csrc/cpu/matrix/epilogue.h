// What follows a product, in fp32, rounded once: scale, bias, activation, residual.
#pragma once

#include "../linear.h"
#include "../vec_math.h"
#include "row_layout.h"
#include "row_norm.h"

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

inline F32 activated(Activation activation, F32 x) {
  switch (activation) {
    case Activation::gelu:
      return gelu_erf(x);
    case Activation::gelu_tanh:
      return gelu_tanh(x);
    case Activation::silu:
      return silu(x);
    default:
      return x;
  }
}

// Sums with int8 weights are in units of the scales of their rows (of few rows, they have it).
inline F32 scaled(const ProductArgs& args, const Weights& w, F32 sum, int64_t column, int64_t n) {
  if (w.format != WeightFormat::int8 || args.plan.few) return sum;
  return sum * load_up_to(w.scale + column, n);
}

template <class T>
inline F32 finished(const ProductArgs& args, F32 sum, F32 up, int64_t row, int64_t column,
                    int64_t n) {
  F32 v = scaled(args, args.w, sum, column, n);
  if (args.activation == Activation::swiglu) return silu(v) * scaled(args, args.up, up, column, n);
  if (args.bias != nullptr) v = v + load_up_to(static_cast<const T*>(args.bias) + column, n);
  v = activated(args.activation, v);
  if (args.residual == nullptr) return v;
  const T* residual = static_cast<const T*>(args.residual) + row * args.residual_stride;
  return v + load_up_to(residual + column, n);
}

// The 16 results of a row from its sums with a panel (and, for swiglu, with the panel of up).
// Element and next: those of the following product, for Output::packed.
template <class T, class Element>
inline void finish(const ProductArgs& args, const RowLayout& next, const float* sums,
                   const float* up, int64_t row, int64_t column) {
#pragma GCC unroll 2
  for (int64_t i = 0; i < kPanel; i += kLanes) {
    const int64_t c = column + i, rest = args.w.rows - c;
    if (rest <= 0) break;
    const int64_t n = rest < kLanes ? rest : kLanes;
    const F32 v = finished<T>(args, load(sums + i), load(up + i), row, c, n);
    if (args.output == Output::rows) {
      store_up_to(static_cast<T*>(args.out) + row * args.out_stride + c, v, n);
    } else if (args.output == Output::floats) {
      store_up_to(static_cast<float*>(args.out) + row * args.out_stride + c, round_to<T>(v), n);
    } else {
      store_up_to(static_cast<Element*>(args.out) + next.at(row, c), v, n);
    }
  }
}

}  // namespace
}  // namespace flashvl::cpu::FLASHVL_LEVEL
