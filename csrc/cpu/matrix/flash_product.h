// The matrix products of flash.h on vectors: C[rows][queries] = A[rows][depth] B[depth][queries]
// with queries in the lanes; scores = K Q^T, outputs = V^T P.
//
// An element of A is broadcast to kFlashRows x 2 accumulators' multiply-adds, so the bound is their
// units: at AVX-512 16 of them (8 to 16 cycles) for 10 loads (5 cycles).
#pragma once

#include "flash_softmax.h"
#include "numbers.h"

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

// Accumulators: kFlashRows x 2 vectors. Scalar has 16 registers of 4 floats, so a vector takes two.
#if defined(FLASHVL_HAS_AVX512)
constexpr int kFlashRows = 8;
#elif defined(FLASHVL_LEVEL_avx2)
constexpr int kFlashRows = 4;
#else
constexpr int kFlashRows = 2;
#endif

struct FlashMatrix {
  const float* data;
  int64_t row;
  int64_t step;
};

template <class Numbers, int rows>
inline void flash_tile(float* c, FlashMatrix a, const float* b, int64_t depth, bool add) {
  F32 sums[rows][2];
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) sums[r][0] = sums[r][1] = zero();
  for (int64_t k = 0; k < depth; ++k) {
    const F32 left = load(b + k * kQueries), right = load(b + k * kQueries + kLanes);
    const float* column = a.data + k * a.step;
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const F32 value = splat(column[r * a.row]);
      sums[r][0] = Numbers::add_products(sums[r][0], value, left);
      sums[r][1] = Numbers::add_products(sums[r][1], value, right);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) {
      float* out = c + r * kQueries + v * kLanes;
      store(out, add ? load(out) + sums[r][v] : sums[r][v]);
    }
  }
}

// As many tiles of `rows` rows as fit into `left`; what they leave.
template <class Numbers, int rows>
inline int64_t flash_tiles(float*& c, FlashMatrix& a, const float* b, int64_t left, int64_t depth,
                           bool add) {
  for (; left >= rows; left -= rows) {
    flash_tile<Numbers, rows>(c, a, b, depth, add);
    c += rows * kQueries;
    a.data += rows * a.row;
  }
  return left;
}

// `vectors`: those of C's columns that hold queries; an odd one brings its neighbour along.
template <class Numbers>
inline void flash_product(float* c, FlashMatrix a, const float* b, int64_t rows, int64_t depth,
                          int vectors, bool add) {
  for (int v = 0; v < vectors; v += 2) {
    FlashMatrix part = a;
    float* out = c + v * kLanes;
    const float* in = b + v * kLanes;
    int64_t left = flash_tiles<Numbers, kFlashRows>(out, part, in, rows, depth, add);
    left = flash_tiles<Numbers, 4>(out, part, in, left, depth, add);
    left = flash_tiles<Numbers, 2>(out, part, in, left, depth, add);
    flash_tiles<Numbers, 1>(out, part, in, left, depth, add);
  }
}

}  // namespace
}  // namespace flashvl::cpu::FLASHVL_LEVEL
