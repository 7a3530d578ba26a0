// The vector vocabulary that kernels are written in, at the level being compiled.
//
//   F32, kLanes                          a register of fp32 lanes, and how many there are
//   zero() splat(v)  a + b  a * b        lane by lane
//   fma(a, b, c)                         a * b + c (rounded once, except at level scalar)
//   reduce_add(a)                        the sum over the lanes, pairwise
//   load(p) load_some(p, n)              n < kLanes: reads n elements, the other lanes are zero
//   store(p, a) store_some(p, a, n)      rounds to nearest even; NaN stays NaN
//   round_to<T>(a)                       the value a store and a load of T would give
//
// p points at float, BF16 or F16, with no alignment needed. Everything is in an unnamed namespace
// inside the level's own, and none of it calls an inline function of the standard library: such a
// function is merged across object files, and the copy the linker keeps may hold instructions that
// the machine lacks (SIGILL on older CPUs).
#pragma once

#include <cstdint>

#include "types.h"

#if defined(FLASHVL_LEVEL_amx) || defined(FLASHVL_LEVEL_avx512)
#include "vec/avx512.h"
#elif defined(FLASHVL_LEVEL_avx2)
#include "vec/avx2.h"
#elif defined(FLASHVL_LEVEL_scalar)
#include "vec/scalar.h"
#else
#error "compile csrc/cpu/*.cpp through CMakeLists.txt: it defines FLASHVL_LEVEL for each level"
#endif
