// tile.h on the tile registers themselves. Reference: Intel SDM volume 2A, TDPBF16PS, TDPBSUD.
#pragma once

#include <immintrin.h>

#include "tile_shape.h"

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

// AddressSanitizer does not see what assembly reads or writes; this shows it the ends of each row.
#if defined(__SANITIZE_ADDRESS__)
thread_local int rows_in_use = kTileRows;  // of tiles 0 to 5

template <int t>
inline void tile_touch(const void* p, int64_t stride) {
  const volatile char* row = static_cast<const char*>(p);
  const int rows = t < 6 ? rows_in_use : kTileRows;
  for (int r = 0; r < rows; ++r, row += stride) (void)row[0], (void)row[kTileBytes - 1];
}
#else
template <int t>
inline void tile_touch(const void*, int64_t) {}
#endif

// Between the two no other code may use the tiles of this thread.
class Tiles {
 public:
  explicit Tiles(int rows = kTileRows) {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
#if defined(__SANITIZE_ADDRESS__)
    rows_in_use = rows;
#endif
    for (int t = 0; t < 8; ++t) config.row_bytes[t] = kTileBytes;
    for (int t = 0; t < 8; ++t) config.rows[t] = static_cast<uint8_t>(t < 6 ? rows : kTileRows);
    // GCC's intrinsic names the first 8 bytes of the configuration as its input; the stores to
    // the other 56 would be dead, and might be left out.
    asm volatile("ldtilecfg %0" : : "m"(config));
  }
  ~Tiles() { _tile_release(); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
};

// As assembly, because GCC 12's intrinsics paste a tile's number from the source text and so take
// no template argument; and they do not tell the compiler that they read or write memory.
template <int t>
inline void tile_zero() {
  asm volatile("tilezero %%tmm%c0" : : "i"(t));
}

template <int t>
inline void tile_load(const void* p, int64_t stride) {
  tile_touch<t>(p, stride);
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(p), "r"(stride), "i"(t) : "memory");
}

template <int t>
inline void tile_load_once(const void* p, int64_t stride) {
  tile_touch<t>(p, stride);
  asm volatile("tileloaddt1 (%0,%1,1), %%tmm%c2" : : "r"(p), "r"(stride), "i"(t) : "memory");
}

template <int t>
inline void tile_store(void* p, int64_t stride) {
  tile_touch<t>(p, stride);
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(p), "r"(stride), "i"(t) : "memory");
}

template <int c, int a, int b>
inline void tile_dot_bf16() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(c), "i"(a), "i"(b));
}

template <int c, int a, int b>
inline void tile_dot_bytes() {
  asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(c), "i"(a), "i"(b));
}

}  // namespace
}  // namespace flashvl::cpu::FLASHVL_LEVEL
