// Where packed activations lie: blocks of rows, inside them steps of kDepth columns.
//
// For AMX a block is 32 rows and a step of it two tiles, one behind the other, so a multiplication
// reads consecutive memory. For vectors a block is as many rows as the registers take, and every
// row is consecutive.
#pragma once

#include "../vec.h"
#include "weights.h"

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

// Blocks of kRows rows; strides count elements.
template <int64_t kRows>
struct RowLayout {
  int64_t block_stride;
  int64_t row_stride;
  int64_t step_stride;

  int64_t at(int64_t row, int64_t column) const {
    return row / kRows * block_stride + row % kRows * row_stride + column / kDepth * step_stride +
           column % kDepth;
  }
};

// Steps of kDepth that cover the columns; one even where there are none, so that sums of nothing
// are zeros and not a special case.
inline int64_t depth_steps(int64_t columns) {
  return columns > kDepth ? (columns + kDepth - 1) / kDepth : 1;
}

inline int64_t round_up(int64_t count, int64_t multiple) {
  return (count + multiple - 1) / multiple * multiple;
}

}  // namespace
}  // namespace flashvl::cpu::FLASHVL_LEVEL
