// Where an operand of dense_product.h lies in memory.
#pragma once

#include <cstdint>

#include "../vec.h"

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

// What an operand is packed as.
#if defined(FLASHVL_LEVEL_amx)
using OperandElement = BF16;
#else
using OperandElement = float;
#endif

// Number (r, k) of an operand: data[r * row + k * depth], one of the two strides being 1.
struct MatrixSource {
  const float* data;
  int64_t row, depth;
  int64_t rows, columns;  // columns: how deep it is
};

struct MatrixOperand {
  MatrixSource source;
  const OperandElement* packed;
};

}  // namespace
}  // namespace flashvl::cpu::FLASHVL_LEVEL
