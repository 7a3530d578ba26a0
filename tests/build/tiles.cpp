// One tile product of csrc/cpu/matrix/tile.h, for test_tiles_in_memory.py: reads 16 rows of 64
// bytes each for a, b and c from the standard input and writes c + a b. Rows of a stand 80 bytes
// apart while they are loaded.
//
//   tiles bf16|bytes ROWS    of a and c; what follows them in c stays as it was
//   tiles unconfigured       uses a tile that nobody configured

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "matrix/tile.h"

#if !defined(FLASHVL_EMULATED_TILES)
#include <sys/syscall.h>
#include <unistd.h>
#endif

using namespace flashvl::cpu::FLASHVL_LEVEL;

namespace {

constexpr int kStride = 80;
alignas(64) char a[kTileRows * kStride], b[kTileRows * kTileBytes], c[kTileRows * kTileBytes];

void read_tile(char* to, int stride) {
  for (int r = 0; r < kTileRows; ++r) {
    if (std::fread(to + r * stride, 1, kTileBytes, stdin) != kTileBytes) std::exit(2);
  }
}

void multiply(const char* what, int rows) {
  const Tiles scope(rows);
  tile_zero<1>();
  tile_load<0>(c, kTileBytes);
  tile_load<4>(a, kStride);
  tile_load_once<6>(b, kTileBytes);
  if (std::strcmp(what, "bf16") == 0) {
    tile_dot_bf16<0, 4, 6>();
  } else {
    tile_dot_bytes<0, 4, 6>();
  }
  tile_store<0>(c, kTileBytes);
}

}  // namespace

int main(int count, char** words) {
#if !defined(FLASHVL_EMULATED_TILES)
  if (syscall(SYS_arch_prctl, 0x1023, 18) != 0) return 3;  // may this process use tiles?
#endif
  if (count == 2) {
    tile_zero<0>();
    return 0;
  }
  read_tile(a, kStride);
  read_tile(b, kTileBytes);
  read_tile(c, kTileBytes);
  multiply(words[1], std::atoi(words[2]));
  std::fwrite(c, 1, sizeof(c), stdout);
}
