// flashvl_cpu::linear: checks, allocation and the split over threads for csrc/cpu/linear.cpp.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "product.h"
#include "tape.h"
#include "tensors.h"

namespace flashvl {
namespace {

cpu::Activation activation_of(const std::optional<std::string>& name) {
  if (!name) return cpu::Activation::none;
  if (*name == "gelu") return cpu::Activation::gelu;
  if (*name == "gelu_tanh") return cpu::Activation::gelu_tanh;
  if (*name == "silu") return cpu::Activation::silu;
  throw std::invalid_argument("linear: activation is '" + *name +
                              "'; needs gelu, gelu_tanh, silu or None");
}

Tensor linear_into(const std::optional<Tensor>& out, Tensor x, Tensor w_data,
                   std::optional<Tensor> w_scale, std::string w_format, int64_t w_columns,
                   std::optional<Tensor> bias, std::optional<std::string> activation,
                   std::optional<Tensor> residual, std::optional<Tensor> norm_weight,
                   std::optional<Tensor> norm_bias, double norm_eps) {
  const cpu::DType dtype = dtype_of("linear", "x", x);
  if (x.dim() == 0) throw std::invalid_argument("linear: x is a scalar; needs [..., K]");
  const int64_t channels = x.size(x.dim() - 1);
  const WeightTensors w =
      as_weight("linear", "w", w_data, w_scale, w_format, w_columns, x, channels);
  const NormTensors norm = as_norm("linear", norm_weight, norm_bias, norm_eps, x);
  const int64_t outputs = w.weights.rows;
  std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
  shape.back() = outputs;
  if (bias) bias = as_vector("linear", "bias", *bias, outputs, x);
  if (residual) {
    check_like("linear", "residual", *residual, x);
    check_shape("linear", "residual", *residual, {shape.data(), shape.size()});
  }

  Tensor y = result_or_empty("linear", out, x, {shape.data(), shape.size()});
  const Rows x_rows = as_rows(x);
  const Rows y_rows = as_rows(residual ? *residual : y);
  if (x_rows.count == 0 || outputs == 0) return y;

  const cpu::ProductArgs product = {
      .plan = {},
      .dtype = dtype,
      .threads = 0,
      .rows = x_rows.count,
      .packed = nullptr,
      .w = w.weights,
      .up = {},
      .activation = activation_of(activation),
      .bias = bias ? bias->const_data_ptr() : nullptr,
      .residual = residual ? y_rows.tensor.const_data_ptr() : nullptr,
      .residual_stride = y_rows.stride,
      .output = cpu::Output::rows,
      .out = y.mutable_data_ptr(),
      .out_stride = outputs,
  };
  multiply(x_rows, norm, product);
  return y;
}

Tensor linear(Tensor x, Tensor w_data, std::optional<Tensor> w_scale, std::string w_format,
              int64_t w_columns, std::optional<Tensor> bias, std::optional<std::string> activation,
              std::optional<Tensor> residual, std::optional<Tensor> norm_weight,
              std::optional<Tensor> norm_bias, double norm_eps) {
  return taped(linear_into, x, w_data, w_scale, w_format, w_columns, bias, activation, residual,
               norm_weight, norm_bias, norm_eps);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(flashvl_cpu, m) {
  m.def(
      "linear(Tensor x, Tensor w_data, Tensor? w_scale, str w_format, SymInt w_columns,"
      " Tensor? bias, str? activation, Tensor? residual,"
      " Tensor? norm_weight, Tensor? norm_bias, float norm_eps) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(flashvl_cpu, CPU, m) { m.impl("linear", TORCH_BOX(&linear)); }

}  // namespace flashvl
