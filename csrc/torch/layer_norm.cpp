// flashvl_cpu::layer_norm: checks, allocation and the split over rows for csrc/cpu/layer_norm.cpp.

#include "../cpu/layer_norm.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <optional>
#include <stdexcept>
#include <tuple>

#include "../cpu/dispatch/dispatch.h"
#include "tensors.h"

namespace flashvl {
namespace {

void check(const Tensor& x, const Tensor& weight, const Tensor& bias,
           const std::optional<Tensor>& residual) {
  if (x.dim() == 0) throw std::invalid_argument("layer_norm: x is a scalar; needs [..., C]");
  const int64_t columns = x.size(x.dim() - 1);
  check_like("layer_norm", "weight", weight, x);
  check_shape("layer_norm", "weight", weight, {&columns, 1});
  check_like("layer_norm", "bias", bias, x);
  check_shape("layer_norm", "bias", bias, {&columns, 1});
  if (residual) {
    check_like("layer_norm", "residual", *residual, x);
    check_shape("layer_norm", "residual", *residual, x.sizes());
  }
}

// new_residual is x + residual, or an empty tensor of shape [0] without a residual: an op's output
// must not alias its input, so x itself cannot be returned here.
std::tuple<Tensor, Tensor> layer_norm(Tensor x, Tensor weight, Tensor bias, double eps,
                                      std::optional<Tensor> residual) {
  static cpu::LayerNormRows* const kernel = FLASHVL_SELECT(cpu::LayerNormRows, layer_norm);
  const cpu::DType dtype = dtype_of("layer_norm", "x", x);
  check(x, weight, bias, residual);

  const int64_t none = 0;
  Tensor y = empty(x, x.sizes());
  Tensor total = residual ? empty(x, x.sizes()) : empty(x, {&none, 1});
  const Rows x_rows = as_rows(x);
  const Rows residual_rows = residual ? as_rows(*residual) : x_rows;
  const Rows weight_row = as_rows(weight), bias_row = as_rows(bias);
  if (x_rows.count == 0 || x_rows.columns == 0) return {y, total};

  const cpu::LayerNormArgs args = {
      .dtype = dtype,
      .x = x_rows.tensor.const_data_ptr(),
      .x_stride = x_rows.stride,
      .residual = residual ? residual_rows.tensor.const_data_ptr() : nullptr,
      .residual_stride = residual_rows.stride,
      .weight = weight_row.tensor.const_data_ptr(),
      .bias = bias_row.tensor.const_data_ptr(),
      .y = y.mutable_data_ptr(),
      .total = total.mutable_data_ptr(),
      .columns = x_rows.columns,
      .eps = static_cast<float>(eps),
  };
  torch::stable::parallel_for(0, x_rows.count, row_grain(x_rows.columns),
                              [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
  return {y, total};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(flashvl_cpu, m) {
  m.def(
      "layer_norm(Tensor x, Tensor weight, Tensor bias, float eps, Tensor? residual)"
      " -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(flashvl_cpu, CPU, m) { m.impl("layer_norm", TORCH_BOX(&layer_norm)); }

}  // namespace flashvl
