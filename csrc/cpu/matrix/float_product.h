// dense_product.h in fp32 fused multiply-adds: every level with vectors and without tiles.
//
// The left operand in groups of kLeft rows, the right one in groups of two vectors of columns, both
// step by step along the depth. A group of the right operand, kFloatChunk steps of it, stays in the
// first-level cache while the rows pass by. Bound by the multiply-adds: at AVX2 a step takes two
// loads and six broadcasts for twelve of them, and their sums fill 12 of the 16 registers.
#pragma once

#include "../vec.h"
#include "operand_source.h"
#include "row_layout.h"
#include "transpose_floats.h"

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

#if defined(FLASHVL_LEVEL_avx2)
constexpr int kLeft = 6;
constexpr int64_t kOperandRows = 48;  // whole groups of either operand
#else
constexpr int kLeft = 8;
constexpr int64_t kOperandRows = 32;
#endif
constexpr int kRight = 2 * kLanes;

// Steps of one sum, which is then added to the result, as FloatBlock's are.
constexpr int64_t kFloatChunk = 128;

// Numbers of a group; a group of the left operand is stored a whole vector at a time.
template <bool right>
constexpr int64_t group_elements(int64_t columns) {
  return right ? columns * kRight : columns * kLeft + kLanes;
}

inline int64_t operand_blocks(int64_t rows) { return (rows + kOperandRows - 1) / kOperandRows; }

// Room for `rows` of either operand.
inline int64_t operand_bytes(int64_t rows, int64_t columns) {
  const int64_t group = group_elements<false>(columns);
  return operand_blocks(rows) * (kOperandRows / kLeft) * group * int64_t{sizeof(float)};
}

// kLanes neighbouring columns of `rows` rows from `row` on, to a vector of rows for each column;
// lanes from `rows` on may hold anything. What the source lacks is zero.
inline void load_block(const MatrixSource& s, int64_t row, int64_t rows, int64_t column,
                       F32 (&out)[kLanes]) {
  const int64_t rest = s.rows - row;
  const int64_t wide = s.columns - column < kLanes ? s.columns - column : kLanes;
  const float* p = s.data + row * s.row + column * s.depth;
  if (s.depth == 1) {
    for (int r = 0; r < kLanes; ++r) {
      if (r >= rows || r >= rest) {
        out[r] = zero();
      } else {
        out[r] = wide == kLanes ? load(p + r * s.row) : load_some(p + r * s.row, wide);
      }
    }
    return transpose(out);
  }
  for (int k = 0; k < kLanes; ++k) {
    if (k >= wide || rest <= 0) {
      out[k] = zero();
    } else {
      const float* next = p + k * s.depth;
      out[k] = rest < kLanes ? load_some(next, rest) : load(next);
    }
  }
}

// Rows [row, row + kLeft) of the left operand, or the kRight columns from there of the right one.
template <bool right>
inline void pack_group(const MatrixSource& s, int64_t row, float* out) {
  F32 block[kLanes];
  for (int64_t k = 0; k < s.columns; k += kLanes) {
    const int64_t steps = s.columns - k < kLanes ? s.columns - k : kLanes;
    if constexpr (right) {
      for (int half = 0; half < 2; ++half) {
        load_block(s, row + half * kLanes, kLanes, k, block);
        for (int64_t i = 0; i < steps; ++i) store(out + (k + i) * kRight + half * kLanes, block[i]);
      }
    } else {
      load_block(s, row, kLeft, k, block);
      for (int64_t i = 0; i < steps; ++i) store(out + (k + i) * kLeft, block[i]);
    }
  }
}

template <bool right>
inline void pack_operand(const MatrixSource& source, int64_t block, float* packed) {
  constexpr int64_t kGroup = right ? kRight : kLeft;
  const int64_t first = block * kOperandRows, end = first + kOperandRows;
  for (int64_t row = first; row < end && row < source.rows; row += kGroup) {
    pack_group<right>(source, row, packed + row / kGroup * group_elements<right>(source.columns));
  }
}

// kLeft rows times kRight columns over `steps` steps.
template <bool add>
inline void multiply_group(const float* a, const float* b, int64_t steps, float* c,
                           int64_t stride) {
  F32 sums[kLeft][2];
#pragma GCC unroll 8
  for (int r = 0; r < kLeft; ++r) sums[r][0] = sums[r][1] = zero();
  for (int64_t k = 0; k < steps; ++k, a += kLeft, b += kRight) {
    const F32 left = load(b), right = load(b + kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < kLeft; ++r) {
      const F32 value = splat(a[r]);
      sums[r][0] = fma(value, left, sums[r][0]);
      sums[r][1] = fma(value, right, sums[r][1]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kLeft; ++r) {
    float* to = c + r * stride;
    store(to, add ? load(to) + sums[r][0] : sums[r][0]);
    store(to + kLanes, add ? load(to + kLanes) + sums[r][1] : sums[r][1]);
  }
}

// c [a.rows, b.rows], both rounded up to whole blocks. The sources' columns agree.
inline void multiply_operands(const MatrixOperand& a, const MatrixOperand& b, float* c,
                              int64_t stride, bool add) {
  const int64_t steps = a.source.columns;
  const int64_t left = group_elements<false>(steps), right = group_elements<true>(steps);
  for (int64_t first = 0; first < steps || first == 0; first += kFloatChunk) {
    const int64_t some = steps - first < kFloatChunk ? steps - first : kFloatChunk;
    for (int64_t j = 0; j * kRight < b.source.rows; ++j) {
      const float* columns = b.packed + j * right + first * kRight;
      for (int64_t i = 0; i * kLeft < a.source.rows; ++i) {
        const float* rows = a.packed + i * left + first * kLeft;
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

}  // namespace
}  // namespace flashvl::cpu::FLASHVL_LEVEL
