// Sweeps over the columns of a row, for kernels whose rows may end inside a vector.
//
//   over_columns(columns, f)        f(first column, how many) for each vector; `how many` is Whole
//                                   for a full one, so that only the row's end pays for its mask
//   over_pairs(columns, two, one)   two(first column) for each two vectors, one(first column, how
//                                   many) for what is left
//   load_at(p, n) store_at(p, a, n) of a Whole vector or of n < kLanes columns
//   fetch(p)                        asks for the cache line of p, which may lie anywhere
//   sum_columns<Sum>(columns, f)    f(sum, first column, how many) returns the sum with those added
#pragma once

#include "vec.h"

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

struct Whole {};

template <class T>
inline F32 load_at(const T* p, Whole) {
  return load(p);
}

template <class T>
inline F32 load_at(const T* p, int64_t n) {
  return load_some(p, n);
}

template <class T>
inline void store_at(T* p, F32 a, Whole) {
  store(p, a);
}

template <class T>
inline void store_at(T* p, F32 a, int64_t n) {
  store_some(p, a, n);
}

inline void fetch(const void* p) { __builtin_prefetch(p); }

template <class Function>
inline void over_columns(int64_t columns, Function f) {
  int64_t c = 0;
  for (; c + kLanes <= columns; c += kLanes) f(c, Whole{});
  if (c < columns) f(c, columns - c);
}

template <class OfTwo, class OfOne>
inline void over_pairs(int64_t columns, OfTwo two, OfOne one) {
  int64_t c = 0;
  for (; c + 2 * kLanes <= columns; c += 2 * kLanes) two(c);
  over_columns(columns - c, [&](int64_t i, auto n) { one(c + i, n); });
}

// An addition takes 4 cycles and two start per cycle: with one running sum the values would wait on
// each other, with four the loads are the limit.
constexpr int kSums = 4;

template <class Sum, class Add>
inline Sum sum_columns(int64_t columns, Add add) {
  Sum sums[kSums] = {};
  int64_t c = 0;
  for (; c + kSums * kLanes <= columns; c += kSums * kLanes) {
#pragma GCC unroll 4
    for (int k = 0; k < kSums; ++k) sums[k] = add(sums[k], c + k * kLanes, Whole{});
  }
  for (; c + kLanes <= columns; c += kLanes) sums[0] = add(sums[0], c, Whole{});
  if (c < columns) sums[1] = add(sums[1], c, columns - c);
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

}  // namespace
}  // namespace flashvl::cpu::FLASHVL_LEVEL
