// fp32 products by small weights: whether a product runs as part of a chain, and the split of that
// over threads.
#pragma once

#include "../cpu/product_chain.h"
#include "product.h"

namespace flashvl {

// fp32 rows of small weights, and many rows.
bool chains(const cpu::ProductArgs& product);

// Runs them; `second` may be null.
void multiply_chain(const Rows& x, const NormTensors& norm, const cpu::ProductArgs& first,
                    const cpu::ProductArgs* second);

}  // namespace flashvl
