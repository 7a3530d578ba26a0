// tile.h in memory: what the instructions do, number for number, on any CPU with AVX512_BF16 and
// VNNI. For tests, and slow.
//
// As strict as they are: tiles that nobody configured, or whose rows don't fit each other, end the
// process, and rows that a configuration leaves out are zero after a load. Releasing forgets all.
// Reference: Intel SDM volume 2A, TDPBF16PS and TDPBSUD.
#pragma once

#include <immintrin.h>

#include <cstdlib>
#include <cstring>

#include "tile_shape.h"

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

struct EmulatedTile {
  alignas(64) uint8_t lines[kTileRows][kTileBytes];
  int rows;  // 0: not configured
};

inline thread_local EmulatedTile emulated_tiles[8] = {};

inline EmulatedTile& configured(int t) {
  if (emulated_tiles[t].rows == 0) std::abort();
  return emulated_tiles[t];
}

class Tiles {
 public:
  explicit Tiles(int rows = kTileRows) {
    if (emulated_tiles[0].rows != 0) std::abort();  // somebody else's
    for (int t = 0; t < 8; ++t) emulated_tiles[t] = {{}, t < 6 ? rows : kTileRows};
  }
  ~Tiles() { std::memset(emulated_tiles, 0, sizeof(emulated_tiles)); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
};

template <int t>
inline void tile_zero() {
  std::memset(configured(t).lines, 0, sizeof(EmulatedTile::lines));
}

template <int t>
inline void tile_load(const void* p, int64_t stride) {
  EmulatedTile& tile = configured(t);
  tile_zero<t>();
  const char* row = static_cast<const char*>(p);
  for (int r = 0; r < tile.rows; ++r) std::memcpy(tile.lines[r], row + r * stride, kTileBytes);
}

template <int t>
inline void tile_load_once(const void* p, int64_t stride) {
  tile_load<t>(p, stride);
}

template <int t>
inline void tile_store(void* p, int64_t stride) {
  const EmulatedTile& tile = configured(t);
  char* row = static_cast<char*>(p);
  for (int r = 0; r < tile.rows; ++r) std::memcpy(row + r * stride, tile.lines[r], kTileBytes);
}

// a's rows are c's, and b has a row for each group of four bytes of a's.
template <int c, int a, int b>
inline void check_product() {
  if (configured(a).rows != configured(c).rows || configured(b).rows != kTileRows) std::abort();
}

// The bf16 in the upper half of each lane as fp32; those below 2^-126 count as zero.
inline __m512 widened(__m512i upper) {
  const __m512i bits = _mm512_and_si512(upper, _mm512_set1_epi32(static_cast<int>(0xffff0000u)));
  const __mmask16 normal = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x7f800000));
  return _mm512_castsi512_ps(_mm512_maskz_mov_epi32(normal, bits));
}

inline __m512 odd_halves(__m512i pairs) { return widened(pairs); }
inline __m512 even_halves(__m512i pairs) { return widened(_mm512_slli_epi32(pairs, 16)); }

// Rounds to nearest, and subnormals are zero, while it lives. The compiler knows nothing of either,
// but moves no access of memory across.
class TileArithmetic {
 public:
  TileArithmetic() : before_(_mm_getcsr()) { set(_MM_MASK_MASK | _MM_FLUSH_ZERO_ON | kSubnormals); }
  ~TileArithmetic() { set(before_); }
  TileArithmetic(const TileArithmetic&) = delete;
  TileArithmetic& operator=(const TileArithmetic&) = delete;

 private:
  static constexpr unsigned kSubnormals = 0x40;  // DAZ: those that come in

  static void set(unsigned state) {
    asm volatile("" : : : "memory");
    _mm_setcsr(state);
    asm volatile("" : : : "memory");
  }

  unsigned before_;
};

// Even and odd terms are summed apart.
template <int c, int a, int b>
inline void tile_dot_bf16() {
  check_product<c, a, b>();
  const TileArithmetic rules;
  EmulatedTile& sums = emulated_tiles[c];
  for (int r = 0; r < sums.rows; ++r) {
    __m512 even = _mm512_setzero_ps(), odd = _mm512_setzero_ps();
    for (int k = 0; k < kTileRows; ++k) {
      int pair;
      std::memcpy(&pair, emulated_tiles[a].lines[r] + 4 * k, 4);
      const __m512i left = _mm512_set1_epi32(pair);
      const __m512i right = _mm512_load_si512(emulated_tiles[b].lines[k]);
      even = _mm512_fmadd_ps(even_halves(left), even_halves(right), even);
      odd = _mm512_fmadd_ps(odd_halves(left), odd_halves(right), odd);
    }
    const __m512 sum = _mm512_load_ps(sums.lines[r]);
    _mm512_store_ps(sums.lines[r], _mm512_add_ps(sum, _mm512_add_ps(even, odd)));
  }
}

template <int c, int a, int b>
inline void tile_dot_bytes() {
  check_product<c, a, b>();
  EmulatedTile& sums = emulated_tiles[c];
  for (int r = 0; r < sums.rows; ++r) {
    __m512i sum = _mm512_load_si512(sums.lines[r]);
    for (int k = 0; k < kTileRows; ++k) {
      int four;
      std::memcpy(&four, emulated_tiles[a].lines[r] + 4 * k, 4);
      const __m512i right = _mm512_load_si512(emulated_tiles[b].lines[k]);
      sum = _mm512_dpbusd_epi32(sum, right, _mm512_set1_epi32(four));
    }
    _mm512_store_si512(sums.lines[r], sum);
  }
}

}  // namespace
}  // namespace flashvl::cpu::FLASHVL_LEVEL
