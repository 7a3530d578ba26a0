// A weight matrix [N, K] as the matrix kernels see it: plain rows, or panels packed once at load.
//
// A panel is 16 rows (output channels) of the matrix, laid out so that one 64-byte load holds one
// step along K for all 16; panel p starts where row 16 p would. K is padded with zeros to a
// multiple of kDepth (int4: of its group of 128). The layouts, also written by
// flashvl_kernels/packing.py:
//
//   floats    [N/16][K/2][16][2]   as tile_dot_bf16 and vdpbf16ps take bf16; for f32 and f16 a
//                                  64-bit broadcast of (x[2j], x[2j + 1]) leaves the sums over even
//                                  and odd k in neighbouring lanes, added once at the end
//   int8      [N/16][K/4][16][4]   uint8, q + 128: the unsigned operand of vpdpbusd
//   int4      [N/16][K/8][16][4]   uint8, two nibbles of q + 8: byte b of step j holds k = 8j + b
//                                  (low) and k = 8j + 4 + b (high)
//   scales    int8 [N]; int4 [N/16][K/128][16]
#pragma once

#include <cstdint>

#include "../types.h"

namespace flashvl::cpu {

inline constexpr int64_t kPanel = 16;
inline constexpr int64_t kDepth = 32;
inline constexpr int64_t kGroup = 128;  // input channels that share an int4 scale

enum class WeightFormat : int { floats, int8, int4 };

struct Weights {
  WeightFormat format;
  DType dtype;  // of the data, where it is floats
  bool panels;  // packed; else rows of packing.py's row formats, row_stride elements apart
  const void* data;
  int64_t
      row_stride;  // of a row: elements; int4: bytes. In panels: the padded K (int4: half of it)
  const float* scale;  // null for floats
  int64_t rows;        // N; in panels a multiple of 16
  int64_t columns;     // K, without padding
};

}  // namespace flashvl::cpu
