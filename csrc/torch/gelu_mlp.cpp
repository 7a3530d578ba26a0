// flashvl_cpu::gelu_mlp: two products of csrc/cpu/linear.cpp, one behind the other.

#include <torch/csrc/stable/library.h>

#include <optional>
#include <stdexcept>
#include <string>

#include "product.h"
#include "tensors.h"

namespace flashvl {
namespace {

cpu::Activation gelu_of(const std::string& approximate) {
  if (approximate == "none") return cpu::Activation::gelu;
  if (approximate == "tanh") return cpu::Activation::gelu_tanh;
  throw std::invalid_argument("gelu_mlp: approximate is '" + approximate +
                              "'; needs 'none' or 'tanh'");
}

Tensor gelu_mlp(Tensor x, Tensor norm_weight, std::optional<Tensor> norm_bias, double norm_eps,
                Tensor w1_data, std::optional<Tensor> w1_scale, std::string w1_format,
                int64_t w1_columns, Tensor b1, Tensor w2_data, std::optional<Tensor> w2_scale,
                std::string w2_format, int64_t w2_columns, Tensor b2, std::string approximate) {
  const char* op = "gelu_mlp";
  const cpu::DType dtype = dtype_of(op, "x", x);
  if (x.dim() == 0) throw std::invalid_argument("gelu_mlp: x is a scalar; needs [..., C]");
  const int64_t channels = x.size(x.dim() - 1);
  const WeightTensors w1 =
      as_weight(op, "w1", w1_data, w1_scale, w1_format, w1_columns, x, channels);
  const int64_t width = w1.weights.rows;
  const WeightTensors w2 = as_weight(op, "w2", w2_data, w2_scale, w2_format, w2_columns, x, width);
  if (w2.weights.rows != channels) throw std::invalid_argument("gelu_mlp: w2 needs [C, F]");
  const NormTensors norm = as_norm(op, norm_weight, norm_bias, norm_eps, x);
  b1 = as_vector(op, "b1", b1, width, x);
  b2 = as_vector(op, "b2", b2, channels, x);

  Tensor y = empty(x, x.sizes());
  const Rows rows = as_rows(x);
  if (rows.count == 0 || channels == 0) return y;

  cpu::ProductArgs first = {};
  first.dtype = dtype;
  first.rows = rows.count;
  first.w = w1.weights;
  first.activation = gelu_of(approximate);
  first.bias = b1.const_data_ptr();
  cpu::ProductArgs second = {};
  second.dtype = dtype;
  second.rows = rows.count;
  second.w = w2.weights;
  second.bias = b2.const_data_ptr();
  second.residual = rows.tensor.const_data_ptr();
  second.residual_stride = rows.stride;
  second.out = y.mutable_data_ptr();
  second.out_stride = channels;
  multiply_twice(rows, norm, first, second);
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(flashvl_cpu, m) {
  m.def(
      "gelu_mlp(Tensor x, Tensor norm_weight, Tensor? norm_bias, float norm_eps,"
      " Tensor w1_data, Tensor? w1_scale, str w1_format, SymInt w1_columns, Tensor b1,"
      " Tensor w2_data, Tensor? w2_scale, str w2_format, SymInt w2_columns, Tensor b2,"
      " str approximate) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(flashvl_cpu, CPU, m) { m.impl("gelu_mlp", TORCH_BOX(&gelu_mlp)); }

}  // namespace flashvl
