// The tile grid as bindings get it, in the order of TileGrid.flat().
#pragma once

#include <string>

#include "../cpu/stitch_tiles.h"
#include "tensors.h"

namespace flashvl {

// The canvas over x [B*T, t*t, C], whose channels are contiguous. Throws std::invalid_argument
// ("op: ...") for a grid that is none, or that x does not fit.
cpu::Canvas tile_canvas(const char* op, const Tensor& x, int64_t rows, int64_t cols, int64_t tile,
                        int64_t overlap, const std::string& rule, int64_t border);

// x itself, or a copy where its channels do not lie next to each other.
Tensor with_contiguous_channels(const Tensor& x);

}  // namespace flashvl
