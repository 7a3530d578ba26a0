// Plain types that cross between the bindings, the dispatcher and every level's kernels.
// They carry no functions: an inline function here would be compiled once per level, and the linker
// could keep the AVX-512 copy for everybody.
#pragma once

#include <cstdint>

namespace flashvl::cpu {

// Storage formats as bits; arithmetic happens in fp32 (see vec.h).
struct BF16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};

enum class DType : int { f32, bf16, f16 };

}  // namespace flashvl::cpu
