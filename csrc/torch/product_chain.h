// fp32 products on the bf16 tiles: whether a product runs there, and its split over threads.
#pragma once

#include "../cpu/split_chain.h"
#include "product.h"

namespace flashvl {

// fp32 rows of small weights, many rows, and a CPU with tiles.
bool splits(const cpu::ProductArgs& product);

// Runs them; `second` may be null.
void multiply_split(const Rows& x, const NormTensors& norm, const cpu::ProductArgs& first,
                    const cpu::ProductArgs* second);

}  // namespace flashvl
