// flashvl_cpu::stitch_tiles: checks, allocation and the split over positions for
// csrc/cpu/stitch_tiles.cpp.

#include "stitch_tiles.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <stdexcept>

#include "../cpu/dispatch/dispatch.h"

namespace flashvl {
namespace {

cpu::StitchRule rule_of(const char* op, const std::string& rule) {
  if (rule == "crop") return cpu::StitchRule::crop;
  if (rule == "mean") return cpu::StitchRule::mean;
  if (rule == "linear") return cpu::StitchRule::linear;
  throw std::invalid_argument(std::string(op) + ": rule is '" + rule +
                              "'; needs crop, mean or linear");
}

Tensor stitch_tiles(Tensor x, int64_t rows, int64_t cols, int64_t tile, int64_t overlap,
                    std::string rule, int64_t border) {
  static cpu::StitchTilesPositions* const kernel =
      FLASHVL_SELECT(cpu::StitchTilesPositions, stitch_tiles);
  const cpu::DType dtype = dtype_of("stitch_tiles", "x", x);
  if (x.dim() != 3) throw std::invalid_argument("stitch_tiles: x needs 3 axes, [B*T, t*t, C]");
  x = with_contiguous_channels(x);
  const cpu::Canvas canvas =
      tile_canvas("stitch_tiles", x, rows, cols, tile, overlap, rule, border);
  const int64_t images = x.size(0) / (rows * cols), channels = x.size(2);
  const int64_t shape[3] = {images, canvas.height * canvas.width, channels};
  Tensor y = empty(x, {shape, 3});
  if (images == 0 || channels == 0) return y;

  const cpu::StitchTilesArgs args = {
      .dtype = dtype,
      .x = x.const_data_ptr(),
      .canvas = canvas,
      .channels = channels,
      .y = y.mutable_data_ptr(),
  };
  torch::stable::parallel_for(0, images * shape[1], row_grain(channels),
                              [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
  return y;
}

}  // namespace

cpu::Canvas tile_canvas(const char* op, const Tensor& x, int64_t rows, int64_t cols, int64_t tile,
                        int64_t overlap, const std::string& rule, int64_t border) {
  const bool sound = rows >= 1 && cols >= 1 && tile >= 1 && overlap >= 0 && overlap <= tile / 2 &&
                     border >= 0 && border < (tile + 1) / 2;
  // Bounded so that no product of them overflows; a grid this large has no memory to back it.
  constexpr int64_t kMost = int64_t{1} << 20;
  if (!sound || rows > kMost || cols > kMost || tile > kMost) {
    throw std::invalid_argument(std::string(op) + ": rows, cols, tile, overlap, border are " +
                                std::to_string(rows) + ", " + std::to_string(cols) + ", " +
                                std::to_string(tile) + ", " + std::to_string(overlap) + ", " +
                                std::to_string(border) + "; needs the fields of a TileGrid");
  }
  if (x.size(0) % (rows * cols) != 0 || x.size(1) != tile * tile) {
    throw std::invalid_argument(std::string(op) + ": x has " + std::to_string(x.size(0)) +
                                " tiles of " + std::to_string(x.size(1)) +
                                " tokens; needs whole images of " + std::to_string(rows * cols) +
                                " tiles of " + std::to_string(tile * tile));
  }
  const cpu::StitchRule kind = rule_of(op, rule);
  const int64_t step = tile - overlap;
  return {
      .down = {rows, tile, overlap, border, kind},
      .across = {cols, tile, overlap, border, kind},
      .height = rows * step + overlap - 2 * border,
      .width = cols * step + overlap - 2 * border,
      .tile_stride = x.stride(0),
      .token_stride = x.stride(1),
  };
}

Tensor with_contiguous_channels(const Tensor& x) {
  return x.size(2) > 1 && x.stride(2) != 1 ? torch::stable::contiguous(x) : x;
}

STABLE_TORCH_LIBRARY_FRAGMENT(flashvl_cpu, m) {
  m.def(
      "stitch_tiles(Tensor x, int rows, int cols, int tile, int overlap, str rule, int border) -> "
      "Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(flashvl_cpu, CPU, m) { m.impl("stitch_tiles", TORCH_BOX(&stitch_tiles)); }

}  // namespace flashvl
