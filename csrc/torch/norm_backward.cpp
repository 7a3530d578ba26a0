// flashvl_cpu::norm_backward: checks, allocation and the split over rows for
// csrc/cpu/norm_backward.cpp.

#include "../cpu/norm_backward.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <tuple>

#include "../cpu/dispatch/dispatch.h"
#include "product.h"
#include "scratch.h"
#include "tensors.h"

namespace flashvl {
namespace {

// dx, dweight, dbias; without a bias the last is empty.
std::tuple<Tensor, Tensor, Tensor> norm_backward(Tensor grad, Tensor x, Tensor weight,
                                                 std::optional<Tensor> bias, double eps,
                                                 std::optional<Tensor> add) {
  static cpu::NormBackwardBytes* const bytes =
      FLASHVL_SELECT(cpu::NormBackwardBytes, norm_backward_bytes);
  static cpu::NormBackwardTask* const task = FLASHVL_SELECT(cpu::NormBackwardTask, norm_backward);
  static cpu::NormBackwardSum* const sum = FLASHVL_SELECT(cpu::NormBackwardSum, norm_backward_sum);
  const char* op = "norm_backward";
  const cpu::DType dtype = dtype_of(op, "x", x);
  if (x.dim() == 0) throw std::invalid_argument("norm_backward: x is a scalar; needs [..., C]");
  check_like(op, "grad", grad, x);
  check_shape(op, "grad", grad, x.sizes());
  if (add) {
    check_like(op, "add", *add, x);
    check_shape(op, "add", *add, x.sizes());
  }
  const int64_t columns = x.size(x.dim() - 1), none = 0;
  const NormTensors norm = as_norm(op, weight, bias, eps, x);
  const Rows rows = as_rows(x), grads = as_rows(grad), adds = as_rows(add ? *add : x);
  Tensor dx = empty(x, x.sizes()), dweight = empty(x, {&columns, 1});
  Tensor dbias = empty(x, {bias ? &columns : &none, 1});

  cpu::NormBackwardArgs args = {
      .dtype = dtype,
      .rows = columns == 0 ? 0 : rows.count,
      .columns = columns,
      .grad = grads.tensor.const_data_ptr(),
      .grad_stride = grads.stride,
      .x = rows.tensor.const_data_ptr(),
      .x_stride = rows.stride,
      .weight = norm.weight->const_data_ptr(),
      .layer = bias.has_value(),
      .eps = norm.eps,
      .add = add ? adds.tensor.const_data_ptr() : nullptr,
      .add_stride = adds.stride,
      .dx = dx.mutable_data_ptr(),
      .dweight = dweight.mutable_data_ptr(),
      .dbias = dbias.mutable_data_ptr(),
      .memory = nullptr,
      .task_bytes = 0,
      .tasks = 1,
  };
  const int64_t threads = torch::stable::get_num_threads();
  args.tasks = std::clamp<int64_t>(args.rows / row_grain(columns), 1, threads);
  args.task_bytes = bytes(args);
  args.memory = static_cast<char*>(scratch(static_cast<size_t>(args.tasks * args.task_bytes)));
  torch::stable::parallel_for(0, args.tasks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) task(args, t);
  });
  sum(args);
  return {dx, dweight, dbias};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(flashvl_cpu, m) {
  m.def(
      "norm_backward(Tensor grad, Tensor x, Tensor weight, Tensor? bias, float eps, Tensor? add)"
      " -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(flashvl_cpu, CPU, m) {
  m.impl("norm_backward", TORCH_BOX(&norm_backward));
}

}  // namespace flashvl
