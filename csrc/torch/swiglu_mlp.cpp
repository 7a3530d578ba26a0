// flashvl_cpu::swiglu_mlp: two products of csrc/cpu/linear.cpp, one behind the other.

#include <torch/csrc/stable/library.h>

#include <optional>
#include <stdexcept>
#include <string>

#include "product.h"
#include "tape.h"
#include "tensors.h"

namespace flashvl {
namespace {

void check_halves(const cpu::Weights& gate_up, const cpu::Weights& down, int64_t channels) {
  if (gate_up.rows % 2 != 0 || down.rows != channels) {
    throw std::invalid_argument("swiglu_mlp: w_gate_up needs [2F, C] and w_down [C, F]");
  }
  if (gate_up.panels && gate_up.rows / 2 % cpu::kPanel != 0) {
    throw std::invalid_argument("swiglu_mlp: w_gate_up is in panels and its gate ends inside one");
  }
}

Tensor swiglu_mlp_into(const std::optional<Tensor>& out, Tensor x, Tensor norm_weight,
                       double norm_eps, Tensor gate_up_data, std::optional<Tensor> gate_up_scale,
                       std::string gate_up_format, int64_t gate_up_columns, Tensor down_data,
                       std::optional<Tensor> down_scale, std::string down_format,
                       int64_t down_columns) {
  const char* op = "swiglu_mlp";
  const cpu::DType dtype = dtype_of(op, "x", x);
  if (x.dim() == 0) throw std::invalid_argument("swiglu_mlp: x is a scalar; needs [..., C]");
  const int64_t channels = x.size(x.dim() - 1);
  const WeightTensors gate_up = as_weight(op, "w_gate_up", gate_up_data, gate_up_scale,
                                          gate_up_format, gate_up_columns, x, channels);
  const int64_t width = gate_up.weights.rows / 2;
  const WeightTensors down =
      as_weight(op, "w_down", down_data, down_scale, down_format, down_columns, x, width);
  check_halves(gate_up.weights, down.weights, channels);
  const NormTensors norm = as_norm(op, norm_weight, std::nullopt, norm_eps, x);

  Tensor y = result_or_empty(op, out, x, x.sizes());
  const Rows rows = as_rows(x);
  if (rows.count == 0 || channels == 0) return y;

  cpu::ProductArgs first = {};
  first.dtype = dtype;
  first.rows = rows.count;
  first.w = weight_rows(gate_up.weights, 0, width);
  first.up = weight_rows(gate_up.weights, width, width);
  first.activation = cpu::Activation::swiglu;
  cpu::ProductArgs second = {};
  second.dtype = dtype;
  second.rows = rows.count;
  second.w = down.weights;
  second.residual = rows.tensor.const_data_ptr();
  second.residual_stride = rows.stride;
  second.out = y.mutable_data_ptr();
  second.out_stride = channels;
  multiply_twice(rows, norm, first, second);
  return y;
}

Tensor swiglu_mlp(Tensor x, Tensor norm_weight, double norm_eps, Tensor gate_up_data,
                  std::optional<Tensor> gate_up_scale, std::string gate_up_format,
                  int64_t gate_up_columns, Tensor down_data, std::optional<Tensor> down_scale,
                  std::string down_format, int64_t down_columns) {
  return taped(swiglu_mlp_into, x, norm_weight, norm_eps, gate_up_data, gate_up_scale,
               gate_up_format, gate_up_columns, down_data, down_scale, down_format, down_columns);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(flashvl_cpu, m) {
  m.def(
      "swiglu_mlp(Tensor x, Tensor norm_weight, float norm_eps,"
      " Tensor gate_up_data, Tensor? gate_up_scale, str gate_up_format, SymInt gate_up_columns,"
      " Tensor down_data, Tensor? down_scale, str down_format, SymInt down_columns) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(flashvl_cpu, CPU, m) { m.impl("swiglu_mlp", TORCH_BOX(&swiglu_mlp)); }

}  // namespace flashvl
