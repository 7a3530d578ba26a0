// dense_product.h on the bf16 tiles.
//
//   SplitProduct<3>    every number as the sum of three of 8 bits each, 24 in all, and of the nine
//                      products of such parts the six that reach fp32 (Henry, Tang and Heinecke,
//                      arXiv 1904.06376). The tiles do 16 times the FLOPs of the vectors' fma, so
//                      2.7 times are left
//   SplitProduct<1>    the largest part alone: numbers rounded to bf16
//
// Sums are as good as those of a chain of fma: the five small products of kChunk steps come first,
// while what they are added to is small, then the large one; a result is rounded half as often as
// it has terms.
//
// What the parts cannot say is multiplied one number at a time, a block of rows and columns alone:
// infinity (times a part that is zero it would be NaN), NaN, and magnitudes from 2^127 on, which
// round up to infinity in bf16. Parts below 2^-126 count as zero, as the tiles do.
//
// Exists at level amx only.
#pragma once

#include "../vec.h"
#include "operand_source.h"
#include "row_layout.h"
#include "tile.h"
#include "transpose.h"

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

constexpr int64_t kSplitRows = 32;  // of a block: two tiles
constexpr int64_t kTileElements = kTileRows * kTileDepth;
constexpr int64_t kSplitHead = 32;  // bf16 before a block's first step

template <int parts>
constexpr int64_t kSplitStep = 2 * parts * kTileElements;  // bf16 of 32 rows and 32 columns

// Steps of 32 that sums stay in the tiles. Of the right operand these are 24 KiB, which stay in the
// first-level cache while the rows pass by; with half as many again the rate fell by a fifth.
template <int parts>
constexpr int64_t kChunk = 12 / parts;

template <int parts>
inline int64_t split_block_elements(int64_t columns) {
  return kSplitHead + depth_steps(columns) * kSplitStep<parts>;
}

// The nearest number of 8 bits, as the bits of fp32.
inline __m512i split_head(__m512 x) {
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  return _mm512_and_si512(up, _mm512_set1_epi32(static_cast<int>(0xffff0000u)));
}

inline __m512i split_size(__m512 x) {
  return _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7fffffff));
}

inline __mmask16 lanes_there(int64_t n) {
  return n >= kLanes ? static_cast<__mmask16>(0xffff) : n <= 0 ? __mmask16{0} : first(n);
}

// A line is 32 bf16 of a part. Of a row: its next 32 columns. Returns the largest magnitude's bits.
template <int parts>
inline __m512i split_row(const float* p, int64_t columns, BF16* out) {
  __m512 a = _mm512_maskz_loadu_ps(lanes_there(columns), p);
  __m512 b = _mm512_maskz_loadu_ps(lanes_there(columns - kLanes), p + kLanes);
  const __m512i size = _mm512_max_epu32(split_size(a), split_size(b));
#pragma GCC unroll 3
  for (int part = 0; part < parts; ++part, out += 2 * kTileElements) {
    const __m512 high_a = _mm512_castsi512_ps(split_head(a));
    const __m512 high_b = _mm512_castsi512_ps(split_head(b));
    _mm512_storeu_si512(out, convert_both({high_a}, {high_b}));
    a = _mm512_sub_ps(a, high_a);
    b = _mm512_sub_ps(b, high_b);
  }
  return size;
}

// Of 16 rows: two columns, in pairs.
template <int parts>
inline __m512i split_pair(const float* even, const float* odd, __mmask16 rows, __mmask16 odd_rows,
                          BF16* out) {
  __m512 a = _mm512_maskz_loadu_ps(rows, even), b = _mm512_maskz_loadu_ps(odd_rows, odd);
  const __m512i size = _mm512_max_epu32(split_size(a), split_size(b));
#pragma GCC unroll 3
  for (int part = 0; part < parts; ++part, out += 2 * kTileElements) {
    const __m512i high_a = split_head(a), high_b = split_head(b);
    _mm512_storeu_si512(out, _mm512_or_si512(_mm512_srli_epi32(high_a, 16), high_b));
    a = _mm512_sub_ps(a, _mm512_castsi512_ps(high_a));
    b = _mm512_sub_ps(b, _mm512_castsi512_ps(high_b));
  }
  return size;
}

// Lines of pairs to lines of rows, and back.
inline void transpose_tile(BF16* tile) {
  __m512i lines[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) lines[i] = _mm512_loadu_si512(tile + i * kTileDepth);
  transpose(lines);
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) _mm512_storeu_si512(tile + i * kTileDepth, lines[i]);
}

// The tiles of 16 rows and 32 columns from (row, column) on, one a part; `out` is the first.
template <int parts, bool right>
inline __m512i split_tile(const MatrixSource& s, int64_t row, int64_t column, BF16* out) {
  const int64_t rows = s.rows - row, columns = s.columns - column;
  const float* p = s.data + row * s.row + column * s.depth;
  __m512i size = _mm512_setzero_si512();
  const bool along = s.depth == 1;
  if (along) {
    for (int64_t r = 0; r < kTileRows; ++r) {
      const float* next = r < rows ? p + r * s.row : s.data;
      const __m512i one = split_row<parts>(next, r < rows ? columns : 0, out + r * kTileDepth);
      size = _mm512_max_epu32(size, one);
    }
  } else {
    for (int64_t j = 0; j < kTileRows; ++j) {
      // Lines a row apart, which the hardware does not foresee: those of the next step.
      __builtin_prefetch(p + (2 * j + kTileDepth) * s.depth);
      __builtin_prefetch(p + (2 * j + 1 + kTileDepth) * s.depth);
      const __mmask16 there = lanes_there(rows);
      const bool even = 2 * j < columns, odd = 2 * j + 1 < columns;
      const __m512i one = split_pair<parts>(
          even ? p + 2 * j * s.depth : s.data, odd ? p + (2 * j + 1) * s.depth : s.data,
          even ? there : __mmask16{0}, odd ? there : __mmask16{0}, out + j * kTileDepth);
      size = _mm512_max_epu32(size, one);
    }
  }
  if (along == right) {
    for (int part = 0; part < parts; ++part) transpose_tile(out + part * 2 * kTileElements);
  }
  return size;
}

// Two tiles of a part each; part 0 is the largest.
inline void load_left(const BF16* step, int part) {
  tile_load<4>(step + part * 2 * kTileElements, kTileBytes);
  tile_load<5>(step + (part * 2 + 1) * kTileElements, kTileBytes);
}
inline void load_right(const BF16* step, int part) {
  tile_load<6>(step + part * 2 * kTileElements, kTileBytes);
  tile_load<7>(step + (part * 2 + 1) * kTileElements, kTileBytes);
}
inline void add_products() {
  tile_dot_bf16<0, 4, 6>();
  tile_dot_bf16<1, 4, 7>();
  tile_dot_bf16<2, 5, 6>();
  tile_dot_bf16<3, 5, 7>();
}

// 32 by 32 sums in tiles 0 to 3.
template <int parts>
inline void split_block(const BF16* a, const BF16* b, int64_t steps) {
  tile_zero<0>();
  tile_zero<1>();
  tile_zero<2>();
  tile_zero<3>();
  constexpr int64_t kStep = kSplitStep<parts>;
  for (int64_t k = 0; parts == 3 && k < steps; ++k) {
    const BF16 *left = a + k * kStep, *right = b + k * kStep;
    load_left(left, 0);
    load_right(right, 2);
    add_products();
    load_right(right, 1);
    add_products();
    load_left(left, 1);
    add_products();
    load_right(right, 0);
    add_products();
    load_left(left, 2);
    add_products();
  }
  for (int64_t k = 0; k < steps; ++k) {
    load_left(a + k * kStep, 0);
    load_right(b + k * kStep, 0);
    add_products();
  }
}

inline void store_block(float* c, int64_t stride) {
  const int64_t bytes = stride * static_cast<int64_t>(sizeof(float));
  tile_store<0>(c, bytes);
  tile_store<1>(c + kTileRows, bytes);
  tile_store<2>(c + kTileRows * stride, bytes);
  tile_store<3>(c + kTileRows * stride + kTileRows, bytes);
}

inline void add_block(float* c, int64_t stride) {
  alignas(64) float sums[kSplitRows * kSplitRows];
  store_block(sums, kSplitRows);
  for (int64_t r = 0; r < kSplitRows; ++r, c += stride) {
    store(c, load(c) + load(sums + r * kSplitRows));
    store(c + kLanes, load(c + kLanes) + load(sums + r * kSplitRows + kLanes));
  }
}

// A block that the parts cannot say.
inline void plain_block(const MatrixSource& a, const MatrixSource& b, int64_t row, int64_t column,
                        float* c, int64_t stride, bool add) {
  for (int64_t i = 0; i < kSplitRows; ++i) {
    for (int64_t j = 0; j < kSplitRows; ++j) {
      float sum = 0.0f;
      if (row + i < a.rows && column + j < b.rows) {
        const float* left = a.data + (row + i) * a.row;
        const float* right = b.data + (column + j) * b.row;
        for (int64_t k = 0; k < a.columns; ++k) {
          sum = __builtin_fmaf(left[k * a.depth], right[k * b.depth], sum);
        }
      }
      float& to = c[i * stride + j];
      to = add ? to + sum : sum;
    }
  }
}

template <int parts>
struct SplitProduct {
  static_assert(parts == 1 || parts == 3);
  using Element = BF16;
  using Operand = MatrixOperand<Element>;
  static constexpr int64_t kOperandRows = kSplitRows;
  // Rows of 1024 columns take 1 MiB, and 1.5 MiB in parts, of 2 MiB of second-level cache.
  static constexpr int64_t kChainRows = 256;

  static int64_t operand_bytes(int64_t rows, int64_t columns) {
    return operand_blocks<SplitProduct>(rows) * split_block_elements<parts>(columns) *
           static_cast<int64_t>(sizeof(BF16));
  }

  // Rows [32 block, 32 block + 32) of a source, those of the right operand being columns of it.
  template <bool right>
  static void pack_operand(const MatrixSource& source, int64_t block, Element* packed) {
    BF16* out = packed + block * split_block_elements<parts>(source.columns);
    __m512i size = _mm512_setzero_si512();
    BF16* step = out + kSplitHead;
    for (int64_t k = 0; k < depth_steps(source.columns); ++k, step += kSplitStep<parts>) {
      for (int64_t tile = 0; tile < 2; ++tile) {
        const __m512i one =
            split_tile<parts, right>(source, block * kOperandRows + tile * kTileRows,
                                     k * kTileDepth, step + tile * kTileElements);
        size = _mm512_max_epu32(size, one);
      }
    }
    constexpr uint32_t kMost = 0x7f000000;  // 2^127
    out->bits = _mm512_reduce_max_epu32(size) >= kMost ? 1 : 0;
  }

  static void multiply_operands(const Operand& a, const Operand& b, float* c, int64_t stride,
                                bool add) {
    const Tiles scope;
    const int64_t steps = depth_steps(a.source.columns);
    const int64_t block = split_block_elements<parts>(a.source.columns);
    const int64_t rows = operand_blocks<SplitProduct>(a.source.rows),
                  columns = operand_blocks<SplitProduct>(b.source.rows);
    for (int64_t first = 0; first < steps; first += kChunk<parts>) {
      const int64_t some = steps - first < kChunk<parts> ? steps - first : kChunk<parts>;
      for (int64_t j = 0; j < columns; ++j) {
        const BF16* right = b.packed + j * block;
        for (int64_t i = 0; i < rows; ++i) {
          const BF16* left = a.packed + i * block;
          float* to = c + i * kOperandRows * stride + j * kOperandRows;
          if (left->bits || right->bits) {
            if (first > 0) continue;
            plain_block(a.source, b.source, i * kOperandRows, j * kOperandRows, to, stride, add);
            continue;
          }
          const int64_t start = kSplitHead + first * kSplitStep<parts>;
          split_block<parts>(left + start, right + start, some);
          if (first > 0 || add) {
            add_block(to, stride);
          } else {
            store_block(to, stride);
          }
        }
      }
    }
  }
};

}  // namespace
}  // namespace flashvl::cpu::FLASHVL_LEVEL
