// flashvl_cpu::stitched_tile_attention: checks, allocation and the split over images, heads and
// bands for csrc/cpu/stitched_tile_attention.cpp.

#include "../cpu/stitched_tile_attention.h"

#include <torch/csrc/stable/library.h>

#include <array>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

#include "../cpu/dispatch/dispatch.h"
#include "flash.h"

namespace flashvl {
namespace {

constexpr const char* kOp = "stitched_tile_attention";
constexpr int64_t kMostPatches = int64_t{1} << 24;  // a side; keeps products inside 64 bits

cpu::StitchRule rule_of(const std::string& rule) {
  if (rule == "crop") return cpu::StitchRule::crop;
  if (rule == "mean") return cpu::StitchRule::mean;
  if (rule == "linear") return cpu::StitchRule::linear;
  throw std::invalid_argument("stitched_tile_attention: rule is '" + rule +
                              "'; needs crop, mean or linear");
}

void check(const Tensor& q, const Tensor& k, const Tensor& v,
           const cpu::StitchedTileAttentionArgs& grid) {
  for (const auto& [name, tensor] : {std::pair{"k", &k}, std::pair{"v", &v}}) {
    check_like(kOp, name, *tensor, q);
    check_shape(kOp, name, *tensor, q.sizes());
  }
  for (const int64_t side : {grid.rows, grid.cols, grid.tile}) {
    if (side < 1 || side > kMostPatches) {
      throw std::invalid_argument("stitched_tile_attention: rows, cols or tile out of range");
    }
  }
  if (grid.overlap < 0 || 2 * grid.overlap > grid.tile || grid.border < 0 ||
      2 * grid.border >= grid.tile) {
    throw std::invalid_argument(
        "stitched_tile_attention: overlap may be half of tile at most, border below half of it");
  }
  if (q.dim() != 4 || q.size(1) != grid.tile * grid.tile || q.size(0) % (grid.rows * grid.cols)) {
    throw std::invalid_argument(
        "stitched_tile_attention: needs q [images * rows * cols, tile * tile, H, D]");
  }
}

Tensor stitched_tile_attention(Tensor q, Tensor k, Tensor v, std::optional<double> scale,
                               int64_t rows, int64_t cols, int64_t tile, int64_t overlap,
                               std::string rule, int64_t border) {
  static cpu::StitchedTileAttentionBytes* const bytes =
      FLASHVL_SELECT(cpu::StitchedTileAttentionBytes, stitched_tile_attention_bytes);
  static cpu::StitchedTileAttentionTask* const kernel =
      FLASHVL_SELECT(cpu::StitchedTileAttentionTask, stitched_tile_attention);
  cpu::StitchedTileAttentionArgs args = {};
  args.flash.dtype = dtype_of(kOp, "q", q);
  args.rows = rows, args.cols = cols, args.tile = tile;
  args.overlap = overlap, args.border = border, args.rule = rule_of(rule);
  check(q, k, v, args);
  args.images = q.size(0) / (rows * cols);
  args.canvas_rows = rows * (tile - overlap) + overlap - 2 * border;
  args.canvas_cols = cols * (tile - overlap) + overlap - 2 * border;
  const int64_t heads = q.size(2), head_dim = q.size(3);
  const std::array<int64_t, 4> shape = {args.images, args.canvas_rows * args.canvas_cols, heads,
                                        head_dim};
  Tensor out = empty(q, {shape.data(), 4});
  if (out.numel() == 0) return out;

  const FlashSplit split =
      flash_split(args.images * heads, out.numel() * q.size(1), args.canvas_rows);
  const Tensor queries = with_channels(q), keys = with_channels(k), values = with_channels(v);
  args.flash.q = flash_tensor(queries, 0, 1, 2);
  args.flash.k = flash_tensor(keys, 0, 1, 2);
  args.flash.v = flash_tensor(values, 0, 1, 2);
  args.flash.out = out.mutable_data_ptr();
  args.flash.heads = heads, args.flash.head_dim = head_dim;
  args.flash.scale = flash_scale(scale, head_dim);
  args.bands = split.parts;
  flash_run(split.tasks, bytes(args), [&](const cpu::FlashTask& task) { kernel(args, task); });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(flashvl_cpu, m) {
  m.def(
      "stitched_tile_attention(Tensor q, Tensor k, Tensor v, float? scale, int rows, int cols,"
      " int tile, int overlap, str rule, int border) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(flashvl_cpu, CPU, m) {
  m.impl("stitched_tile_attention", TORCH_BOX(&stitched_tile_attention));
}

}  // namespace flashvl
