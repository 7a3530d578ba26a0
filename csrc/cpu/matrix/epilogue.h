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
    case Activation::swiglu:
      return silu(x);
    case Activation::none:
      break;
  }
  return x;
}

// kLanes columns of results: what is the same for every row. The scale is that of int8 rows (few
// rows have it applied already); one and zero where there is none.
template <class T>
struct Columns {
  int64_t first = 0, count = 0;
  F32 scale, up_scale, bias;

  Columns() {}
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

// Finishes rows of one panel's results, or of two neighbouring ones: a cache line of bf16. Element
// and Layout: those of the following product, for Output::packed.
template <class T, class Element, class Layout>
class Finish {
 public:
  // The results of `panels` panels from column `column` on; for swiglu one, from gate and up.
  Finish(const ProductArgs& args, const Layout& next, int64_t column, int panels)
      : args_(args), next_(next), column_(column), count_(panels * kParts) {
    for (int i = 0; i < count_; ++i) columns_[i] = Columns<T>(args, column + i * kLanes);
  }

  // left, right: a row's 16 sums with each panel; for swiglu with gate and up.
  void operator()(int64_t row, const float* left, const float* right) const {
    for (int i = 0; i < count_; ++i) {
      const Columns<T>& columns = columns_[i];
      if (columns.count <= 0) return;
      const float* sums = i < kParts ? left + i * kLanes : right + (i - kParts) * kLanes;
      F32 v = activated(args_.activation, fma(load(sums), columns.scale, columns.bias));
      if (args_.activation == Activation::swiglu)
        v = v * (load(right + i * kLanes) * columns.up_scale);
      write(row, columns, v);
    }
  }

  // Asks for the cache lines of a row's results and residual: there are as many as rows, too far
  // apart for the hardware to foresee.
  void fetch(int64_t row) const {
    if (row >= args_.rows) return;
    if (args_.output != Output::packed) {
      __builtin_prefetch(static_cast<const T*>(args_.out) + row * args_.out_stride + column_, 1);
    }
    if (args_.residual != nullptr) {
      const T* residual = static_cast<const T*>(args_.residual) + row * args_.residual_stride;
      __builtin_prefetch(residual + column_);
    }
  }

 private:
  static constexpr int kParts = static_cast<int>(kPanel) / kLanes;

  void write(int64_t row, const Columns<T>& columns, F32 v) const {
    const int64_t c = columns.first, n = columns.count;
    if (args_.residual != nullptr) {
      const T* residual = static_cast<const T*>(args_.residual) + row * args_.residual_stride;
      v = v + load_up_to(residual + c, n);
    }
    if (args_.output == Output::rows) {
      store_up_to(static_cast<T*>(args_.out) + row * args_.out_stride + c, v, n);
    } else if (args_.output == Output::floats) {
      store_up_to(static_cast<float*>(args_.out) + row * args_.out_stride + c, round_to<T>(v), n);
    } else {
      store_up_to(static_cast<Element*>(args_.out) + next_.at(row, c), v, n);
    }
  }

  const ProductArgs& args_;
  const Layout next_;
  const int64_t column_;
  const int count_;
  Columns<T> columns_[2 * kParts];
};

}  // namespace
}  // namespace flashvl::cpu::FLASHVL_LEVEL
