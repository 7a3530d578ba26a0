// dense_product.h on vectors: every level that has them, and has no tiles.
//
//   VectorProduct<Floats>      in fp32
//   VectorProduct<BF16Pairs>   rounded to bf16, two neighbours along the depth at a time; level
//                              avx512_bf16 only
//
// The left operand in groups of kLeft rows, the right one in groups of two vectors of columns, both
// step by step along the depth. A group of the right operand, kChunk steps of it, stays in the
// first-level cache while the rows pass by. Bound by the multiply-adds: at AVX2 a step takes two
// loads and six broadcasts for twelve of them, and their sums fill 12 of the 16 registers.
#pragma once

#include "../vec.h"
#include "numbers.h"
#include "operand_source.h"
#include "row_layout.h"
#include "transpose_floats.h"

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

template <class Numbers>
struct VectorProduct {
  using Element = float;  // 32 bits of Numbers
  using Operand = MatrixOperand<Element>;

#if defined(FLASHVL_LEVEL_avx2)
  static constexpr int kLeft = 6;
  static constexpr int64_t kOperandRows = 48;  // whole groups of either operand
#else
  static constexpr int kLeft = 8;
  static constexpr int64_t kOperandRows = 32;
#endif
  static constexpr int kRight = 2 * kLanes;
  static constexpr int64_t kChainRows = 96;

  static int64_t operand_bytes(int64_t rows, int64_t columns) {
    const int64_t group = group_elements<false>(steps_of(columns));
    return operand_blocks<VectorProduct>(rows) * (kOperandRows / kLeft) * group *
           int64_t{sizeof(Element)};
  }

  template <bool right>
  static void pack_operand(const MatrixSource& source, int64_t block, Element* packed) {
    constexpr int64_t kGroup = right ? kRight : kLeft;
    const int64_t first = block * kOperandRows, end = first + kOperandRows;
    const int64_t group = group_elements<right>(steps_of(source.columns));
    for (int64_t row = first; row < end && row < source.rows; row += kGroup) {
      pack_group<right>(source, row, packed + row / kGroup * group);
    }
  }

  static void multiply_operands(const Operand& a, const Operand& b, float* c, int64_t stride,
                                bool add) {
    const int64_t steps = steps_of(a.source.columns);
    const int64_t left = group_elements<false>(steps), right = group_elements<true>(steps);
    for (int64_t first = 0; first < steps || first == 0; first += kChunk) {
      const int64_t some = steps - first < kChunk ? steps - first : kChunk;
      for (int64_t j = 0; j * kRight < b.source.rows; ++j) {
        const Element* columns = b.packed + j * right + first * kRight;
        for (int64_t i = 0; i * kLeft < a.source.rows; ++i) {
          const Element* rows = a.packed + i * left + first * kLeft;
          float* to = c + i * kLeft * stride + j * kRight;
          if (first > 0 || add) {
            multiply_group<true>(rows, columns, some, to, stride);
          } else {
            multiply_group<false>(rows, columns, some, to, stride);
          }
        }
      }
    }
  }

 private:
  // Steps of one sum, which is then added to the result, as FloatBlock's are.
  static constexpr int64_t kChunk = 128;

  static int64_t steps_of(int64_t columns) {
    return (columns + Numbers::kColumns - 1) / Numbers::kColumns;
  }

  // A group of the left operand is stored a whole vector at a time.
  template <bool right>
  static constexpr int64_t group_elements(int64_t steps) {
    return right ? steps * kRight : steps * kLeft + kLanes;
  }

  // kLanes steps, from `column` on, of `rows` rows from `row` on: a vector of rows for each step.
  // Lanes from `rows` on may hold anything. What the source lacks is zero.
  static void load_block(const MatrixSource& s, int64_t row, int64_t rows, int64_t column,
                         F32 (&out)[kLanes]) {
    const int64_t rest = s.rows - row, wide = s.columns - column;
    const float* p = s.data + row * s.row + column * s.depth;
    if (s.depth == 1) {
      for (int r = 0; r < kLanes; ++r) {
        out[r] = r < rows && r < rest ? Numbers::along(p + r * s.row, wide) : zero();
      }
      return transpose(out);
    }
    for (int k = 0; k < kLanes; ++k) {
      const int64_t at = k * Numbers::kColumns;
      out[k] = at < wide && rest > 0 ? Numbers::across(p + at * s.depth, s.depth, wide - at, rest)
                                     : zero();
    }
  }

  // Rows [row, row + kLeft) of the left operand, or the kRight columns from there of the right one.
  template <bool right>
  static void pack_group(const MatrixSource& s, int64_t row, Element* out) {
    F32 block[kLanes];
    const int64_t all = steps_of(s.columns);
    for (int64_t k = 0; k < all; k += kLanes) {
      const int64_t steps = all - k < kLanes ? all - k : kLanes, column = k * Numbers::kColumns;
      if constexpr (right) {
        for (int half = 0; half < 2; ++half) {
          load_block(s, row + half * kLanes, kLanes, column, block);
          for (int64_t i = 0; i < steps; ++i) {
            store(out + (k + i) * kRight + half * kLanes, block[i]);
          }
        }
      } else {
        load_block(s, row, kLeft, column, block);
        for (int64_t i = 0; i < steps; ++i) store(out + (k + i) * kLeft, block[i]);
      }
    }
  }

  // kLeft rows times kRight columns over `steps` steps.
  template <bool add>
  static void multiply_group(const Element* a, const Element* b, int64_t steps, float* c,
                             int64_t stride) {
    F32 sums[kLeft][2];
#pragma GCC unroll 8
    for (int r = 0; r < kLeft; ++r) sums[r][0] = sums[r][1] = zero();
    for (int64_t k = 0; k < steps; ++k, a += kLeft, b += kRight) {
      const F32 left = load(b), right = load(b + kLanes);
#pragma GCC unroll 8
      for (int r = 0; r < kLeft; ++r) {
        const F32 value = splat(a[r]);
        sums[r][0] = Numbers::add_products(sums[r][0], value, left);
        sums[r][1] = Numbers::add_products(sums[r][1], value, right);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kLeft; ++r) {
      float* to = c + r * stride;
      store(to, add ? load(to) + sums[r][0] : sums[r][0]);
      store(to + kLanes, add ? load(to + kLanes) + sums[r][1] : sums[r][1]);
    }
  }
};

}  // namespace
}  // namespace flashvl::cpu::FLASHVL_LEVEL
