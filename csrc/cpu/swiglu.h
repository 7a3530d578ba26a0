// What the binding hands to the swiglu kernels.
#pragma once

#include <cstdint>

#include "levels.h"
#include "types.h"

namespace flashvl::cpu {

// A row of gate_up holds `columns` gates, then as many values; its stride counts elements. Rows of
// `out` are contiguous.
struct SwigluArgs {
  DType dtype;
  const void* gate_up;
  int64_t stride;
  void* out;
  int64_t columns;
};

// Computes rows [begin, end).
using SwigluRows = void(const SwigluArgs& args, int64_t begin, int64_t end);
FLASHVL_DECLARE_KERNEL(SwigluRows, swiglu)

}  // namespace flashvl::cpu
