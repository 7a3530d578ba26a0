// flashvl_cpu::image_to_patches: checks, allocation and the split into bands for
// csrc/cpu/image_to_patches.cpp.

#include "../cpu/image_to_patches.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "../cpu/dispatch/dispatch.h"
#include "scratch.h"
#include "tensors.h"

namespace flashvl {
namespace {

using torch::headeronly::ScalarType;

[[noreturn]] void refuse(const std::string& what) {
  throw std::invalid_argument("image_to_patches: " + what);
}

// The image itself where its pixels are RGB bytes next to each other in a row, else a copy.
Tensor with_contiguous_rows(const Tensor& image) {
  if (!image.is_cpu() || image.scalar_type() != ScalarType::Byte || image.dim() != 3 ||
      image.size(2) != 3 || image.size(0) < 1 || image.size(1) < 1) {
    refuse("image needs to be uint8 [H, W, 3] on the CPU, with at least one pixel");
  }
  const bool pixels = image.stride(2) == 1 && (image.size(1) == 1 || image.stride(1) == 3);
  return pixels ? image : torch::stable::contiguous(image);
}

cpu::DType result_dtype(ScalarType dtype) {
  if (dtype == ScalarType::Float) return cpu::DType::f32;
  if (dtype == ScalarType::BFloat16) return cpu::DType::bf16;
  if (dtype == ScalarType::Half) return cpu::DType::f16;
  refuse("dtype needs to be float32, bfloat16 or float16");
}

void check_grid(int64_t rows, int64_t cols, int64_t tile, int64_t overlap, int64_t patch) {
  // Bounded so that no product of them overflows; a canvas this large has no memory to back it.
  constexpr int64_t kMost = 1 << 15;
  const bool sound = rows >= 1 && cols >= 1 && tile >= 1 && overlap >= 0 && overlap <= tile / 2 &&
                     patch >= 1 && rows <= kMost && cols <= kMost && tile <= kMost &&
                     patch <= kMost && std::max(rows, cols) * tile <= (1 << 24) / patch;
  if (!sound) {
    refuse("rows, cols, tile, overlap, patch are " + std::to_string(rows) + ", " +
           std::to_string(cols) + ", " + std::to_string(tile) + ", " + std::to_string(overlap) +
           ", " + std::to_string(patch) + "; needs the fields of a TileGrid and a canvas side of " +
           "at most 2^24 pixels");
  }
}

Tensor image_to_patches(Tensor image, int64_t rows, int64_t cols, int64_t tile, int64_t overlap,
                        std::string rule, int64_t border, std::vector<double> mean,
                        std::vector<double> std, int64_t patch, ScalarType dtype) {
  static cpu::ImageToPatchesMeasure* const measure =
      FLASHVL_SELECT(cpu::ImageToPatchesMeasure, image_to_patches_measure);
  static cpu::ImageToPatchesPrepare* const prepare =
      FLASHVL_SELECT(cpu::ImageToPatchesPrepare, image_to_patches_prepare);
  static cpu::ImageToPatchesTask* const kernel =
      FLASHVL_SELECT(cpu::ImageToPatchesTask, image_to_patches);
  image = with_contiguous_rows(image);
  check_grid(rows, cols, tile, overlap, patch);
  if (mean.size() != 3 || std.size() != 3) refuse("mean and std need three numbers each");
  const int64_t shape[3] = {rows * cols, tile * tile, 3 * patch * patch};
  Tensor y = torch::stable::new_empty(image, {shape, 3}, dtype);

  const int64_t bytes = image.size(0) * image.size(1) * 3 + shape[0] * shape[1] * shape[2];
  cpu::ImageToPatchesArgs args = {
      .dtype = result_dtype(dtype),
      .image = static_cast<const uint8_t*>(image.const_data_ptr()),
      .height = image.size(0),
      .width = image.size(1),
      .row_stride = image.stride(0),
      .rows = rows,
      .cols = cols,
      .tile = tile,
      .overlap = overlap,
      .patch = patch,
      .mean = {static_cast<float>(mean[0]), static_cast<float>(mean[1]),
               static_cast<float>(mean[2])},
      .std = {static_cast<float>(std[0]), static_cast<float>(std[1]), static_cast<float>(std[2])},
      .tasks = std::min<int64_t>(torch::stable::get_num_threads(), bytes / row_grain(1) + 1),
      .y = y.mutable_data_ptr(),
      .down_groups = 0,
      .across_groups = 0,
      .memory = 0,
  };
  measure(args);
  void* memory = scratch(static_cast<size_t>(args.memory));
  prepare(args, memory);
  torch::stable::parallel_for(0, args.tasks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) kernel(args, memory, task);
  });
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(flashvl_cpu, m) {
  m.def(
      "image_to_patches(Tensor image, int rows, int cols, int tile, int overlap, str rule, "
      "int border, float[] mean, float[] std, int patch, ScalarType dtype) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(flashvl_cpu, CPU, m) {
  m.impl("image_to_patches", TORCH_BOX(&image_to_patches));
}

}  // namespace flashvl
