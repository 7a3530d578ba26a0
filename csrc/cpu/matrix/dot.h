// The vocabulary of dot products with few rows: what multiplies a load of weights by activations.
//
// Floats, in two shapes; X is what activations are prepared as (BF16 where the level has an
// instruction for pairs of them, else float):
//
//   PanelStep<T>   load(p): two columns of x's (a pair) for the 16 rows of a panel
//                  add(sums, x): sums of 16 rows += the step times x[0], x[1]
//   RowStep<T>     load(p), load_some(p, n): kWidth weights along one row
//                  add(sum, x): sum += the step times x[0 .. kWidth), lane by lane
//
// Integers: 64 unsigned bytes of weights times activations of 15 bits, exact in int32 as long as
// fewer than 516 products meet in a lane (255 * 16319 * 516 < 2^31).
//
//   Bytes                       load_bytes(p), load_bytes(p, n): the bytes from n on are zero
//   flip_top(b)                 signed to unsigned, + 128
//   low_nibbles(b)              and high_nibbles(b)
//   Sums                        16 sums over four neighbouring bytes each
//   start(v), start_row(v)      v in every lane; in the first lane only
//   add_panel(sums, w, x)       16 rows by four columns; x: four columns from encode_panel
//   four_at(i)                  where encode_panel put columns 4 i to 4 i + 3, in 256 bytes a group
//   add_row(sums, w, x)         one row by 64 columns; x: 128 bytes from encode_row
//   a + b                       of two sums
//   finish(sums, out)           to fp32
//   encode_panel(q, x)          64 integers of 15 bits to 128 bytes of activations
//   encode_row(q, x)            the same, for add_row
//   byte_field<shift, mask>(p)  (p[4 i .. 4 i + 4) as uint32 >> shift) & mask, to fp32 lanes
//
// kRowsAtOnce rows of activations fit in the registers beside one load of weights. One row reads
// kPanelsAtOnce panels, each a place in memory for which the processor fetches ahead on its own;
// more rows as many as leave kFloatSums sums of a row and a panel (kByteSums with int8, kNibbleSums
// with int4 weights) in registers.
#pragma once

#include "../vec.h"
#include "weights.h"

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

constexpr int kParts = kPanel / kLanes;  // registers that hold 16 fp32 sums
constexpr int kStepBytes = 64;

// kLanes weights along a row, widened.
template <class T>
struct WideRowStep {
  using X = float;
  static constexpr int kWidth = kLanes;
  F32 weights;
  void load(const T* p) { weights = flashvl::cpu::FLASHVL_LEVEL::load(p); }
  void load_some(const T* p, int64_t n) { weights = flashvl::cpu::FLASHVL_LEVEL::load_some(p, n); }
  void add(F32& sum, const float* x) const {
    sum = fma(weights, flashvl::cpu::FLASHVL_LEVEL::load(x), sum);
  }
};

}  // namespace
}  // namespace flashvl::cpu::FLASHVL_LEVEL

#if defined(FLASHVL_HAS_AVX512)
#include "dot_avx512.h"
#elif defined(FLASHVL_LEVEL_avx2)
#include "dot_avx2.h"
#else
#include "dot_scalar.h"
#endif
