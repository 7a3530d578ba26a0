// The vector vocabulary that kernels are written in, at the level being compiled.
//
//   F32, kLanes                          a register of fp32 lanes, and how many there are
//   zero() splat(v)  a + b  -  *  /      lane by lane
//   fma(a, b, c)                         a * b + c (rounded once, except at level scalar)
//   min(a, b) max(a, b)                  b where either is NaN
//   reciprocal(d)                        1 / d for d from 1 to infinity
//   abs(a) sqrt(a) round(a)              round: to the nearest integer, ties to even
//   scale_by_power(a, n)                 a * 2^n for whole n in [-252, 254]; underflow to zero
//   scale_normal(a, n)                   the same where a is in [0.7, 1.5), n in [-125, 128] and
//                                        the result a normal number or, of a = 1, infinity
//   Mask, less(a, b), is_nan(a)          comparisons lane by lane; NaN is less than nothing
//   select(mask, a, b)                   a where the mask holds, else b
//   reduce_add(a) reduce_max(a)          over the lanes, pairwise; no NaN in reduce_max
//   add_neighbours(a, b)                 lanes 0 + 1, 2 + 3, ... of a, then those of b
//   reduce_add_each(a, p)                p[i] = the sum over the lanes of a[i], of four vectors
//   load(p) load_some(p, n)              n < kLanes: reads n elements, the other lanes are zero
//   store(p, a) store_some(p, a, n)      rounds to nearest even; NaN stays NaN
//   load_up_to(p, n)                     either, as n says; likewise store_up_to(p, a, n)
//   Two, load_two(p) store_two(p, two)   2 * kLanes elements in an order of the level's choice:
//                                        bf16 needs fewer instructions so than as two vectors
//   store_both(p, a, b)                  a, then b; bf16 subnormals may become zeros
//   round_to<T>(a)                       the value a store and a load of T would give; of Two too
//   for_lanes(columns, f)                f(first, n) for each run of n <= kLanes columns
//
// p points at float, BF16 or F16 (loads: at uint8_t too), with no alignment needed. Everything is
// in an unnamed namespace inside the level's own, and none of it calls an inline function of the
// standard library: such a function is merged across object files, and the copy the linker keeps
// may hold instructions that the machine lacks (SIGILL on older CPUs).
#pragma once

#include <cstdint>

#include "levels.h"
#include "types.h"

#if defined(FLASHVL_HAS_AVX512)
#include "vec/avx512.h"
#elif defined(FLASHVL_LEVEL_avx2)
#include "vec/avx2.h"
#elif defined(FLASHVL_LEVEL_scalar)
#include "vec/scalar.h"
#else
#error "compile csrc/cpu/*.cpp through CMakeLists.txt: it defines FLASHVL_LEVEL for each level"
#endif

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

template <class T>
inline F32 load_up_to(const T* p, int64_t n) {
  return n < kLanes ? load_some(p, n) : load(p);
}

template <class T>
inline void store_up_to(T* p, F32 a, int64_t n) {
  if (n < kLanes) {
    store_some(p, a, n);
  } else {
    store(p, a);
  }
}

template <class Function>
inline void for_lanes(int64_t columns, Function f) {
  for (int64_t c = 0; c < columns; c += kLanes) f(c, columns - c < kLanes ? columns - c : kLanes);
}

}  // namespace
}  // namespace flashvl::cpu::FLASHVL_LEVEL
