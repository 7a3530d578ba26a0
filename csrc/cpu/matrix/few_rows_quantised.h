// Rows of activations as few_rows_prepare.h quantised them, by their parts.
#pragma once

#include "few_rows_blocks.h"

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

template <int R>
struct QuantisedRows {
  const float* scales[R];
  const int32_t* offsets[R];
  const uint8_t* values[R];

  QuantisedRows(const Weights& w, const RowBlock& block) {
    const PreparedRow parts = prepared_row(w);
    for (int r = 0; r < R; ++r) {
      const char* row = static_cast<const char*>(block.x[r]);
      scales[r] = reinterpret_cast<const float*>(row + parts.scales);
      offsets[r] = reinterpret_cast<const int32_t*>(row + parts.offsets);
      values[r] = reinterpret_cast<const uint8_t*>(row + parts.values);
    }
  }
};

}  // namespace
}  // namespace flashvl::cpu::FLASHVL_LEVEL
