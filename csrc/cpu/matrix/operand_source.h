// Where an operand of dense_product.h lies in memory.
#pragma once

#include <cstdint>

#include "../vec.h"

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

// Number (r, k) of an operand: data[r * row + k * depth], one of the two strides being 1.
struct MatrixSource {
  const float* data;
  int64_t row, depth;
  int64_t rows, columns;  // columns: how deep it is
};

template <class Element>
struct MatrixOperand {
  MatrixSource source;
  const Element* packed;
};

template <class Product>
inline int64_t operand_blocks(int64_t rows) {
  return (rows + Product::kOperandRows - 1) / Product::kOperandRows;
}

}  // namespace
}  // namespace flashvl::cpu::FLASHVL_LEVEL
