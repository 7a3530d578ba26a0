// What the binding hands to the image_to_patches kernels.
#pragma once

#include <cstdint>

#include "levels.h"
#include "types.h"

namespace flashvl::cpu {

struct ImageToPatchesArgs {
  DType dtype;           // of y
  const uint8_t* image;  // RGB pixels, contiguous in a row
  int64_t height;
  int64_t width;
  int64_t row_stride;  // in bytes
  int64_t rows;        // of tiles
  int64_t cols;
  int64_t tile;  // in patches
  int64_t overlap;
  int64_t patch;  // in pixels
  float mean[3];
  float std[3];
  int64_t tasks;  // bands of canvas rows, each with its own part of the memory
  void* y;        // [rows * cols, tile * tile, 3 * patch * patch], contiguous

  // Filled in by image_to_patches_measure.
  int64_t down_groups;  // groups of four taps an output, along each axis
  int64_t across_groups;
  int64_t memory;  // bytes of working memory for tables and all tasks
};

// One after the other: how much memory is needed; the tables, into that memory (aligned to 64);
// then each task on its own.
using ImageToPatchesMeasure = void(ImageToPatchesArgs& args);
using ImageToPatchesPrepare = void(const ImageToPatchesArgs& args, void* memory);
using ImageToPatchesTask = void(const ImageToPatchesArgs& args, void* memory, int64_t task);
FLASHVL_DECLARE_KERNEL(ImageToPatchesMeasure, image_to_patches_measure)
FLASHVL_DECLARE_KERNEL(ImageToPatchesPrepare, image_to_patches_prepare)
FLASHVL_DECLARE_KERNEL(ImageToPatchesTask, image_to_patches)

}  // namespace flashvl::cpu
