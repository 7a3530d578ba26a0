// flashvl_cpu::linear_backward and swiglu_mlp_backward: checks, allocation and the split over
// threads for csrc/cpu/product_backward.cpp.

#include "../cpu/product_backward.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>

#include "../cpu/dispatch/dispatch.h"
#include "packed_tasks.h"
#include "precision.h"
#include "product.h"
#include "tensors.h"

namespace flashvl {
namespace {

constexpr int64_t kTaskRows = 64;  // fewer rows than that are not worth sums of their own

bool available() {
  static cpu::ProductBackwardTask* const kernel =
      FLASHVL_SELECT(cpu::ProductBackwardTask, product_backward);
  return kernel != nullptr;
}

// Float32 rows.
Rows rows_of(const char* op, const char* name, const Tensor& tensor, int64_t columns) {
  if (dtype_of(op, name, tensor) != cpu::DType::f32 || tensor.dim() == 0 ||
      tensor.size(tensor.dim() - 1) != columns) {
    throw std::invalid_argument(std::string(op) + ": " + name + " needs float32 rows of " +
                                std::to_string(columns));
  }
  return as_rows(tensor);
}

const float* data(const Rows& rows) {
  return static_cast<const float*>(rows.tensor.const_data_ptr());
}
const float* data(const std::optional<Tensor>& tensor) {
  return tensor ? static_cast<const float*>(tensor->const_data_ptr()) : nullptr;
}

// A result, or an empty tensor and a null pointer where it is not wanted.
Tensor result(bool wanted, const Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef shape,
              float*& to) {
  const int64_t none = 0;
  if (!wanted) return empty(like, {&none, 1});
  Tensor out = empty(like, shape);
  to = static_cast<float*>(out.mutable_data_ptr());
  return out;
}

void run(cpu::ProductBackwardArgs& args) {
  static cpu::ProductBackwardPlan* const plan =
      FLASHVL_SELECT(cpu::ProductBackwardPlan, product_backward_plan);
  static cpu::ProductBackwardPack* const pack =
      FLASHVL_SELECT(cpu::ProductBackwardPack, product_backward_pack);
  static cpu::ProductBackwardTask* const task =
      FLASHVL_SELECT(cpu::ProductBackwardTask, product_backward);
  static cpu::ProductBackwardSum* const sum =
      FLASHVL_SELECT(cpu::ProductBackwardSum, product_backward_sum);
  args.bf16 = products_in_bf16();
  const auto sizes = pack_and_run(args, args.rows, kTaskRows, plan, pack, task);
  torch::stable::parallel_for(0, sizes.sum_rows, 64,
                              [&](int64_t begin, int64_t end) { sum(args, begin, end); });
}

cpu::Activation activation_of(const std::optional<std::string>& name) {
  if (!name) return cpu::Activation::none;
  if (*name == "gelu") return cpu::Activation::gelu;
  if (*name == "gelu_tanh") return cpu::Activation::gelu_tanh;
  if (*name == "silu") return cpu::Activation::silu;
  throw std::invalid_argument("linear_backward: activation is '" + *name + "'");
}

void need_vectors(const char* op) {
  if (!available()) throw std::runtime_error(std::string(op) + ": needs level avx2");
}

using Five = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

// dx, dw, dbias, dnorm_weight, dnorm_bias.
Five linear_backward(Tensor dy, Tensor x, Tensor w, std::optional<Tensor> bias,
                     std::optional<std::string> activation, std::optional<Tensor> norm_weight,
                     std::optional<Tensor> norm_bias, double norm_eps, bool need_x, bool need_w,
                     bool need_bias, bool need_norm) {
  const char* op = "linear_backward";
  need_vectors(op);
  if (w.dim() != 2) throw std::invalid_argument("linear_backward: w needs two axes");
  const int64_t outputs = w.size(0), columns = w.size(1);
  const Rows x_rows = rows_of(op, "x", x, columns), dy_rows = rows_of(op, "dy", dy, outputs);
  const Rows w_rows = rows_of(op, "w", w, columns);
  if (dy_rows.count != x_rows.count) throw std::invalid_argument("linear_backward: rows differ");
  if (bias) bias = as_vector(op, "bias", *bias, outputs, x);
  const NormTensors norm = as_norm(op, norm_weight, norm_bias, norm_eps, x);

  cpu::ProductBackwardArgs args = {};
  args.rows = x_rows.count;
  args.columns = columns;
  args.outputs = outputs;
  args.x = data(x_rows);
  args.x_stride = x_rows.stride;
  args.dy = data(dy_rows);
  args.dy_stride = dy_rows.stride;
  args.w = data(w_rows);
  args.w_stride = w_rows.stride;
  args.bias = data(bias);
  args.activation = activation_of(activation);
  args.norm_weight = data(norm.weight);
  args.norm_bias = data(norm.bias);
  args.eps = norm.eps;
  Tensor dx = result(need_x || need_norm, x, x.sizes(), args.dx);
  Tensor dw = result(need_w, x, w.sizes(), args.dw);
  Tensor dbias = result(need_bias, x, {&outputs, 1}, args.dbias);
  Tensor dnorm_weight = result(need_norm && norm.weight, x, {&columns, 1}, args.dnorm_weight);
  Tensor dnorm_bias = result(need_norm && norm.bias, x, {&columns, 1}, args.dnorm_bias);
  run(args);
  return {dx, dw, dbias, dnorm_weight, dnorm_bias};
}

using Four = std::tuple<Tensor, Tensor, Tensor, Tensor>;

// dx, dnorm_weight, dgate_up, ddown.
Four swiglu_mlp_backward(Tensor dy, Tensor x, Tensor norm_weight, double norm_eps, Tensor gate_up,
                         Tensor down, bool need_x, bool need_norm, bool need_gate_up,
                         bool need_down) {
  const char* op = "swiglu_mlp_backward";
  need_vectors(op);
  if (gate_up.dim() != 2 || down.dim() != 2) {
    throw std::invalid_argument("swiglu_mlp_backward: weights need two axes");
  }
  const int64_t outputs = gate_up.size(0), columns = gate_up.size(1);
  if (down.size(0) != columns || down.size(1) * 2 != outputs) {
    throw std::invalid_argument("swiglu_mlp_backward: gate_up needs [2F, C] and down [C, F]");
  }
  const Rows x_rows = rows_of(op, "x", x, columns), dy_rows = rows_of(op, "dy", dy, columns);
  const Rows w_rows = rows_of(op, "gate_up", gate_up, columns);
  const Rows down_rows = rows_of(op, "down", down, outputs / 2);
  if (dy_rows.count != x_rows.count) {
    throw std::invalid_argument("swiglu_mlp_backward: rows differ");
  }
  const NormTensors norm = as_norm(op, norm_weight, std::nullopt, norm_eps, x);

  cpu::ProductBackwardArgs args = {};
  args.rows = x_rows.count;
  args.columns = columns;
  args.outputs = outputs;
  args.width = outputs / 2;
  args.x = data(x_rows);
  args.x_stride = x_rows.stride;
  args.dy = data(dy_rows);
  args.dy_stride = dy_rows.stride;
  args.w = data(w_rows);
  args.w_stride = w_rows.stride;
  args.down = data(down_rows);
  args.down_stride = down_rows.stride;
  args.activation = cpu::Activation::swiglu;
  args.norm_weight = data(norm.weight);
  args.eps = norm.eps;
  Tensor dx = result(need_x || need_norm, x, x.sizes(), args.dx);
  Tensor dnorm_weight = result(need_norm, x, {&columns, 1}, args.dnorm_weight);
  Tensor dgate_up = result(need_gate_up, x, gate_up.sizes(), args.dw);
  Tensor ddown = result(need_down, x, down.sizes(), args.ddown);
  run(args);
  return {dx, dnorm_weight, dgate_up, ddown};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(flashvl_cpu, m) {
  m.def(
      "linear_backward(Tensor dy, Tensor x, Tensor w, Tensor? bias, str? activation,"
      " Tensor? norm_weight, Tensor? norm_bias, float norm_eps, bool need_x, bool need_w,"
      " bool need_bias, bool need_norm) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "swiglu_mlp_backward(Tensor dy, Tensor x, Tensor norm_weight, float norm_eps,"
      " Tensor gate_up, Tensor down, bool need_x, bool need_norm, bool need_gate_up,"
      " bool need_down) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("product_backward_available() -> bool");
}

STABLE_TORCH_LIBRARY_IMPL(flashvl_cpu, CPU, m) {
  m.impl("linear_backward", TORCH_BOX(&linear_backward));
  m.impl("swiglu_mlp_backward", TORCH_BOX(&swiglu_mlp_backward));
}

STABLE_TORCH_LIBRARY_IMPL(flashvl_cpu, CompositeExplicitAutograd, m) {
  m.impl("product_backward_available", TORCH_BOX(&available));
}

}  // namespace flashvl
