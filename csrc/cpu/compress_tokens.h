// What the binding hands to the compress_tokens kernels.
#pragma once

#include <cstdint>

#include "levels.h"
#include "stitch_tiles.h"
#include "types.h"

namespace flashvl::cpu {

// `none` is a shuffle of factor 1.
enum class Pooling : int { shuffle, average, adaptive, bilinear };

struct CompressTokensArgs {
  DType dtype;
  const void* x;
  Canvas canvas;
  int64_t channels;  // of x
  Pooling pooling;
  int64_t factor;      // of shuffle and average
  bool channel_major;  // shuffle: channel c of cell k goes to c * factor^2 + k, else k * channels +
                       // c
  int64_t rows;        // of the compressed grid
  int64_t cols;
  bool transpose;      // tokens column by column
  const void* weight;  // null: no norm
  const void* bias;    // null: RMSNorm
  float eps;
  bool norm_first;  // false without a norm
  void* y;          // [images, rows * cols, output channels], contiguous
};

// Rows of `channels` floats that a task needs as scratch, aligned to 64.
inline constexpr int64_t kCompressScratchRows = 5;

// Writes the tokens [begin, end), counted through all images. scratch is the task's own.
using CompressTokensRows = void(const CompressTokensArgs& args, int64_t begin, int64_t end,
                                void* scratch);
FLASHVL_DECLARE_KERNEL(CompressTokensRows, compress_tokens)

}  // namespace flashvl::cpu
