// flashvl_cpu::compress_tokens: checks, allocation and the split over tokens for
// csrc/cpu/compress_tokens.cpp.

#include "../cpu/compress_tokens.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <string>

#include "../cpu/dispatch/dispatch.h"
#include "scratch.h"
#include "stitch_tiles.h"
#include "tensors.h"

namespace flashvl {
namespace {

[[noreturn]] void refuse(const std::string& what) {
  throw std::invalid_argument("compress_tokens: " + what);
}

cpu::Pooling pooling_of(const std::string& kind) {
  if (kind == "shuffle" || kind == "none") return cpu::Pooling::shuffle;
  if (kind == "average") return cpu::Pooling::average;
  if (kind == "adaptive") return cpu::Pooling::adaptive;
  if (kind == "bilinear") return cpu::Pooling::bilinear;
  refuse("kind is '" + kind + "'; needs shuffle, average, adaptive, bilinear or none");
}

// Plain tokens [B, height * width, C]: one tile an image. height -1: a square.
cpu::Canvas token_canvas(const Tensor& x, int64_t height, int64_t width) {
  const int64_t tokens = x.size(1);
  if (height == -1) {
    height = 0;
    while ((height + 1) * (height + 1) <= tokens) ++height;
    width = height;
  }
  if (height < 0 || width < 0 || (width > 0 && height > tokens / width) ||
      height * width != tokens) {
    refuse("size is " + std::to_string(height) + "x" + std::to_string(width) + " for " +
           std::to_string(tokens) + " tokens; needs height * width equal to the tokens of x");
  }
  return {
      .down = {1, height, 0, 0, cpu::StitchRule::crop},
      .across = {1, width, 0, 0, cpu::StitchRule::crop},
      .height = height,
      .width = width,
      .tile_stride = x.stride(0),
      .token_stride = x.stride(1),
  };
}

// Rows and columns of the compressed grid.
void set_grid(cpu::CompressTokensArgs& args, int64_t out_height, int64_t out_width, bool pad) {
  const cpu::Canvas& canvas = args.canvas;
  if (args.pooling == cpu::Pooling::adaptive || args.pooling == cpu::Pooling::bilinear) {
    if (out_height < 1 || out_width < 1 || canvas.height * canvas.width == 0) {
      refuse("out is " + std::to_string(out_height) + "x" + std::to_string(out_width) +
             "; needs at least one token, from at least one");
    }
    args.rows = out_height;
    args.cols = out_width;
    return;
  }
  const int64_t factor = args.factor;
  if (!pad && (canvas.height % factor != 0 || canvas.width % factor != 0)) {
    refuse("a grid of " + std::to_string(canvas.height) + "x" + std::to_string(canvas.width) +
           " tokens does not divide into blocks of side " + std::to_string(factor));
  }
  args.rows = (canvas.height + factor - 1) / factor;
  args.cols = (canvas.width + factor - 1) / factor;
}

void set_norm(cpu::CompressTokensArgs& args, const Tensor& x, const Rows& weight,
              const Tensor* bias, int64_t made) {
  const int64_t columns = args.norm_first ? args.channels : made;
  check_like("compress_tokens", "norm_weight", weight.tensor, x);
  check_shape("compress_tokens", "norm_weight", weight.tensor, {&columns, 1});
  args.weight = weight.tensor.const_data_ptr();
  if (bias == nullptr) return;
  check_like("compress_tokens", "norm_bias", *bias, x);
  check_shape("compress_tokens", "norm_bias", *bias, {&columns, 1});
  args.bias = bias->const_data_ptr();
}

Rows vector_of(const char* name, const Tensor& tensor) {
  if (tensor.dim() != 1) refuse(std::string(name) + " needs one axis");
  return as_rows(tensor);
}

Tensor compress_tokens(Tensor x, std::optional<Tensor> norm_weight, std::optional<Tensor> norm_bias,
                       double norm_eps, std::string kind, int64_t factor, std::string order,
                       int64_t out_height, int64_t out_width, bool norm_first, bool transpose,
                       bool pad, int64_t height, int64_t width, int64_t rows, int64_t cols,
                       int64_t tile, int64_t overlap, std::string rule, int64_t border) {
  static cpu::CompressTokensRows* const kernel =
      FLASHVL_SELECT(cpu::CompressTokensRows, compress_tokens);
  const cpu::DType dtype = dtype_of("compress_tokens", "x", x);
  if (x.dim() != 3) refuse("x needs 3 axes, [B, N, C]");
  if (factor < 1 || factor > (1 << 15)) refuse("factor is " + std::to_string(factor));
  if (order != "row_col_channel" && order != "channel_row_col") refuse("order is '" + order + "'");
  x = with_contiguous_channels(x);
  cpu::CompressTokensArgs args = {
      .dtype = dtype,
      .x = x.const_data_ptr(),
      .canvas = rows == 0
                    ? token_canvas(x, height, width)
                    : tile_canvas("compress_tokens", x, rows, cols, tile, overlap, rule, border),
      .channels = x.size(2),
      .pooling = pooling_of(kind),
      .factor = kind == "none" ? 1 : factor,
      .channel_major = order == "channel_row_col",
      .rows = 0,
      .cols = 0,
      .transpose = transpose,
      .weight = nullptr,
      .bias = nullptr,
      .eps = static_cast<float>(norm_eps),
      .norm_first = norm_first && norm_weight.has_value(),
      .y = nullptr,
  };
  set_grid(args, out_height, out_width, pad);
  const bool shuffle = args.pooling == cpu::Pooling::shuffle;
  const int64_t made = shuffle ? args.channels * args.factor * args.factor : args.channels;
  const int64_t images = rows == 0 ? x.size(0) : x.size(0) / (rows * cols);
  std::optional<Rows> weight, bias;
  if (norm_weight) {
    weight = vector_of("norm_weight", *norm_weight);
    if (norm_bias) bias = vector_of("norm_bias", *norm_bias);
    set_norm(args, x, *weight, bias ? &bias->tensor : nullptr, made);
  }
  const int64_t shape[3] = {images, args.rows * args.cols, made};
  Tensor y = empty(x, {shape, 3});
  const int64_t tokens = images * shape[1];
  if (tokens == 0 || made == 0) return y;

  args.y = y.mutable_data_ptr();
  const int64_t tasks =
      std::min<int64_t>(torch::stable::get_num_threads(), (tokens - 1) / row_grain(made) + 1);
  const int64_t part = (args.channels * cpu::kCompressScratchRows * 4 + 63) / 64 * 64;
  char* memory = static_cast<char*>(scratch(static_cast<size_t>(tasks * part)));
  torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      kernel(args, tokens * task / tasks, tokens * (task + 1) / tasks, memory + task * part);
    }
  });
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(flashvl_cpu, m) {
  m.def(
      "compress_tokens(Tensor x, Tensor? norm_weight, Tensor? norm_bias, float norm_eps, str kind, "
      "int factor, str order, int out_height, int out_width, bool norm_first, bool transpose, "
      "bool pad, SymInt height, SymInt width, int rows, int cols, int tile, int overlap, str rule, "
      "int border) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(flashvl_cpu, CPU, m) {
  m.impl("compress_tokens", TORCH_BOX(&compress_tokens));
}

}  // namespace flashvl
