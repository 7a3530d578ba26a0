// What follows a product, in fp32, rounded once: scale, bias, activation, residual.
#pragma once

#include <type_traits>

#include "../linear.h"
#include "../vec_math.h"
#include "normalised_row.h"
#include "row_layout.h"

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

// Calls f(function) with the function behind an activation on its way to T. swiglu's is that of its
// gate.
template <class T, class Function>
inline void with_activation(Activation activation, Function f) {
  constexpr bool exact = std::is_same_v<T, float>;
  switch (activation) {
    case Activation::gelu:
      return f([](F32 x) { return gelu_erf(x); });
    case Activation::gelu_tanh:
      return f([](F32 x) { return gelu_tanh<exact>(x); });
    case Activation::silu:
    case Activation::swiglu:
      return f([](F32 x) { return silu<exact>(x); });
    case Activation::none:
      return f([](F32 x) { return x; });
  }
}

// Units whose results of a row are finished together.
constexpr int kFinishUnits = 4;

// Finishes rows of a few neighbouring units' results; a unit is two panels, for swiglu a panel of
// gates and one of the up projection. Element and Layout: those of the following product, for
// Output::packed.
//
// The tiles leave this about 60 instructions for 32 results, so whatever is alike for all rows is
// decided once a call, and columns are stored without asking which exist where all do.
template <class T, class Element, class Layout>
class Finish {
 public:
  Finish() {}
  // The results of `units` units from `unit` on. Where rows are few a unit is a single panel.
  Finish(const ProductArgs& args, const Layout& next, int64_t unit, int units)
      : args_(&args),
        next_(next),
        units_(units),
        parts_(args.activation == Activation::swiglu || args.plan.few ? kParts : 2 * kParts),
        column_(unit * parts_ * kLanes),
        whole_(column_ + units * parts_ * kLanes <= args.w.rows) {
    for (int i = 0; i < units_ * parts_; ++i) {
      const int64_t first = column_ + i * kLanes, n = columns_at(i);
      const bool biased = args.bias != nullptr && n > 0;
      bias_[i] = biased ? load_up_to(static_cast<const T*>(args.bias) + first, n) : zero();
      scale_[i] = scale_of(args.w, first, n);
      up_scale_[i] = scale_of(args.up, first, n);
    }
  }

  // Rows [begin, end). sums_at(row, i, j) points at a row's 16 sums with panel j of unit i; for
  // swiglu with gate and up.
  template <class SumsAt>
  void operator()(int64_t begin, int64_t end, SumsAt sums_at) const {
    with_activation<T>(args_->activation, [&](auto activate) {
      const auto rows_to = [&](auto target) {
        for (int64_t row = begin; row < end; ++row) {
          for (int i = 0; i < units_; ++i) {
            F32 v[2 * kParts];
            results(sums_at(row, i, 0), sums_at(row, i, 1), i * parts_, activate, v);
            write(row, i, v, target(row, column_ + i * parts_ * kLanes));
          }
        }
      };
      if (args_->output == Output::packed) {
        return rows_to([this](int64_t row, int64_t column) {
          return static_cast<Element*>(args_->out) + next_.at(row, column);
        });
      }
      if (args_->output == Output::floats) {
        return rows_to([this](int64_t row, int64_t column) {
          return static_cast<float*>(args_->out) + row * args_->out_stride + column;
        });
      }
      rows_to([this](int64_t row, int64_t column) {
        return static_cast<T*>(args_->out) + row * args_->out_stride + column;
      });
    });
  }

  // Asks for the cache lines of a row's results and residual: the hardware does not foresee them.
  void fetch(int64_t row) const {
    if (row >= args_->rows) return;
    const int64_t elements = units_ * parts_ * kLanes;
    if (args_->output == Output::rows) {
      fetch_lines<1>(static_cast<const T*>(args_->out) + row * args_->out_stride + column_,
                     elements);
    } else if (args_->output == Output::packed) {
      for (int64_t i = 0; i < elements; i += kDepth) {
        fetch_lines<1>(static_cast<const Element*>(args_->out) + next_.at(row, column_ + i),
                       kDepth);
      }
    }
    if (args_->residual != nullptr) fetch_lines<0>(residual_at(row, column_), elements);
  }

 private:
  static constexpr int kParts = static_cast<int>(kPanel) / kLanes;
  static constexpr int kMost = kFinishUnits * 2 * kParts;

  int64_t columns_at(int part) const {
    const int64_t rest = args_->w.rows - column_ - part * kLanes;
    return rest < kLanes ? rest : kLanes;
  }

  // The scale of int8 weights, and one for others and where few rows have it applied already.
  F32 scale_of(const Weights& w, int64_t first, int64_t n) const {
    const bool scaled = w.format == WeightFormat::int8 && !args_->plan.few && n > 0;
    return scaled ? load_up_to(w.scale + first, n) : splat(1.0f);
  }

  const T* residual_at(int64_t row, int64_t column) const {
    return static_cast<const T*>(args_->residual) + row * args_->residual_stride + column;
  }

  template <int for_writing, class E>
  static void fetch_lines(const E* p, int64_t elements) {
    constexpr int64_t kLine = 64 / sizeof(E);
    for (int64_t i = 0; i < elements; i += kLine) __builtin_prefetch(p + i, for_writing);
  }

  // A unit's parts_ vectors of results, before the residual.
  template <class Activate>
  void results(const float* left, const float* right, int first, Activate activate, F32* v) const {
    const bool pair = args_->activation == Activation::swiglu;
#pragma GCC unroll 4
    for (int k = 0; k < 2 * kParts; ++k) {
      if (k >= parts_) break;
      const float* sums = k < kParts ? left + k * kLanes : right + (k - kParts) * kLanes;
      v[k] = activate(fma(load(sums), scale_[first + k], bias_[first + k]));
      if (pair) v[k] = v[k] * (load(right + k * kLanes) * up_scale_[first + k]);
    }
  }

  // Adds the residual, rounds once, and stores.
  template <class Out>
  void write(int64_t row, int i, F32* v, Out* out) const {
    const int first = i * parts_;
    const T* residual =
        args_->residual != nullptr ? residual_at(row, column_ + first * kLanes) : nullptr;
    if (!whole_) return write_there(v, first, residual, out);
    if (residual != nullptr) {
      for (int k = 0; k < parts_; ++k) v[k] = v[k] + load(residual + k * kLanes);
    }
    if (parts_ == 1) return store(out, rounded(v[0], out));
#pragma GCC unroll 2
    for (int k = 0; k < 2 * kParts; k += 2) {
      if (k >= parts_) break;
      store_both(out + k * kLanes, rounded(v[k], out), rounded(v[k + 1], out));
    }
  }

  // The columns that exist.
  template <class Out>
  void write_there(const F32* v, int first, const T* residual, Out* out) const {
    for (int k = 0; k < parts_ && columns_at(first + k) > 0; ++k) {
      const int64_t n = columns_at(first + k), at = k * kLanes;
      const F32 sum = residual != nullptr ? v[k] + load_up_to(residual + at, n) : v[k];
      store_up_to(out + at, rounded(sum, out), n);
    }
  }

  // fp32 results carry what T can hold, as a tensor between the two products would.
  template <class Out>
  static F32 rounded(F32 a, const Out*) {
    if constexpr (std::is_same_v<Out, float>) return round_to<T>(a);
    return a;
  }

  const ProductArgs* args_ = nullptr;
  Layout next_ = {};
  int units_ = 0, parts_ = 0;
  int64_t column_ = 0;
  bool whole_ = false;
  F32 scale_[kMost], up_scale_[kMost], bias_[kMost];
};

}  // namespace
}  // namespace flashvl::cpu::FLASHVL_LEVEL
