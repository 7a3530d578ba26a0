// Large pages for memory that is swept over again and again.
#pragma once

#include <cstddef>

namespace flashvl {

// Asks the system to back [p, p + bytes) with pages of 2 MiB where they fit whole; a wish, without
// effect where the system has none. To be asked before the memory is first written. A matrix
// product walks megabytes of weights and activations, and on a virtual machine looking up pages of
// 4 KiB costs it 10 to 25 % of its rate (docs/ladders/linear.md).
void advise_huge_pages(void* p, size_t bytes);

}  // namespace flashvl
