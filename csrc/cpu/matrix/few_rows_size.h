// How much memory few_rows.h needs, for bindings and kernels alike, and how it is divided.
//
// The functions are static, not inline: a merged copy could hold instructions that a CPU lacks.
#pragma once

#include <cstdint>

#include "weights.h"

namespace flashvl::cpu {

inline constexpr int kFewRows = 8;

// One prepared row. With float weights: the row itself, padded with zeros to kDepth. With integer
// weights, as below; sizes in bytes, every part aligned to 64.
//
//   header    64         int32: 1 where the row could be quantised, else 0
//   scales    4 groups   fp32, of a group of kGroup columns
//   offsets   4 groups   int32: what the sum over the group starts from (few_rows_prepare.h)
//   values    512 groups 2 bytes a column where it could be quantised, else fp32
struct PreparedRow {
  int64_t scales, offsets, values, bytes;
};

[[maybe_unused]] static constexpr PreparedRow prepared_row(const Weights& w) {
  constexpr int64_t kLine = 64;
  if (w.format == WeightFormat::floats) {
    return {0, 0, 0, (w.columns + kDepth - 1) / kDepth * kDepth * 4};
  }
  const int64_t groups = (w.columns + kGroup - 1) / kGroup;
  const int64_t line = (groups * 4 + kLine - 1) / kLine * kLine;
  const int64_t values = kLine + 2 * line;
  return {kLine, kLine + line, values, values + groups * kGroup * 4};
}

// Bytes of one prepared row of activations, a multiple of 64.
[[maybe_unused]] static constexpr int64_t few_rows_bytes(const Weights& w) {
  return prepared_row(w).bytes;
}

}  // namespace flashvl::cpu
