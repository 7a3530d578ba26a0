// What products of few and of many rows (product_few.h, product_many.h) have in common.
#pragma once

#include "../linear.h"
#include "weights.h"

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

constexpr int64_t kLine = 64;

inline bool is_gated(const ProductArgs& args) { return args.activation == Activation::swiglu; }

inline int64_t panels_of(const Weights& w) { return (w.rows + kPanel - 1) / kPanel; }

// Part `index` of `count` of [0, total).
struct Range {
  int64_t begin, end;

  Range(int64_t total, int64_t index, int64_t count)
      : begin(total * index / count), end(total * (index + 1) / count) {}
};

}  // namespace
}  // namespace flashvl::cpu::FLASHVL_LEVEL
