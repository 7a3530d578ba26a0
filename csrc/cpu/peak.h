// What the binding asks of the ceiling loops: FLOPs without memory, and memory without FLOPs.
#pragma once

#include <cstdint>

#include "levels.h"
#include "types.h"

namespace flashvl::cpu {

enum class Peak : int { fma_f32, dot_bf16, tiles_bf16 };

// Runs `rounds` rounds of the loop on this core; returns the FLOPs of a round, 0 where the level
// has no such instruction (and then nothing was run).
using PeakLoop = int64_t(Peak what, int64_t rounds);
FLASHVL_DECLARE_KERNEL(PeakLoop, peak_loop)

// Reads bytes [0, size) as floats, adds them up and drops the sum; size is a multiple of 4096.
using ReadLoop = void(const void* bytes, int64_t size);
FLASHVL_DECLARE_KERNEL(ReadLoop, read_loop)

}  // namespace flashvl::cpu
