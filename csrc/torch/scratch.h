// Working memory of the kernels: kept from call to call, so that a steady caller allocates nothing.
#pragma once

#include <cstddef>

namespace flashvl {

// At least `bytes` bytes, aligned to 64, for the calling thread until its next call of scratch().
// One op call asks once and hands parts to its tasks; what is in there is left from earlier calls.
// Throws std::bad_alloc.
void* scratch(size_t bytes);

}  // namespace flashvl
