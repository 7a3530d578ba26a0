// flashvl_cpu::rope_qkv_backward: checks, allocation and the split over rows for
// csrc/cpu/rope_qkv_backward.cpp.

#include "../cpu/rope_qkv_backward.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <array>
#include <optional>
#include <stdexcept>

#include "../cpu/dispatch/dispatch.h"
#include "tensors.h"

namespace flashvl {
namespace {

constexpr const char* kOp = "rope_qkv_backward";

// Gradients [N, heads, D] with contiguous channels; copied where they are not.
Tensor heads_of(const char* name, const Tensor& grad, const Tensor& like, int64_t rows,
                int64_t heads, int64_t head_dim) {
  check_like(kOp, name, grad, like);
  const std::array<int64_t, 3> shape = {rows, heads, head_dim};
  check_shape(kOp, name, grad, {shape.data(), 3});
  return grad.stride(2) == 1 ? grad : packed(grad);
}

cpu::RopeHeads at(const Tensor& grad) {
  return {grad.const_data_ptr(), grad.stride(0), grad.stride(1)};
}

Tensor rope_qkv_backward(Tensor dq, Tensor dk, Tensor dv, Tensor cos, Tensor sin,
                         std::optional<Tensor> positions) {
  static cpu::RopeQkvBackwardRows* const kernel =
      FLASHVL_SELECT(cpu::RopeQkvBackwardRows, rope_qkv_backward);
  const cpu::DType dtype = dtype_of(kOp, "dq", dq), table_dtype = dtype_of(kOp, "cos", cos);
  if (dq.dim() != 3 || dk.dim() != 3 || cos.dim() != 2) {
    throw std::invalid_argument("rope_qkv_backward: dq, dk need [N, heads, D] and cos [P, D/2]");
  }
  const int64_t rows = dq.size(0), heads = dq.size(1), kv_heads = dk.size(1);
  const int64_t head_dim = 2 * cos.size(1);
  dq = heads_of("dq", dq, dq, rows, heads, head_dim);
  dk = heads_of("dk", dk, dq, rows, kv_heads, head_dim);
  dv = heads_of("dv", dv, dq, rows, kv_heads, head_dim);
  check_like(kOp, "sin", sin, cos);
  check_shape(kOp, "sin", sin, cos.sizes());
  if (table_dtype != cpu::DType::f32) check_like(kOp, "cos", cos, dq);
  const Rows cos_rows = as_rows(cos), sin_rows = as_rows(sin);
  const int64_t* indices = nullptr;
  if (positions) {
    check_index(kOp, "positions", *positions);
    check_shape(kOp, "positions", *positions, {&rows, 1});
    positions = packed(*positions);
    indices = static_cast<const int64_t*>(positions->const_data_ptr());
  }
  for (int64_t n = 0; n < rows; ++n) {
    const int64_t position = indices == nullptr ? n : indices[n];
    if (position >= 0 && position < cos.size(0)) continue;
    throw std::invalid_argument("rope_qkv_backward: a position is outside of cos");
  }
  const std::array<int64_t, 2> shape = {rows, (heads + 2 * kv_heads) * head_dim};
  Tensor dqkv = empty(dq, {shape.data(), 2});
  if (rows == 0) return dqkv;
  const cpu::RopeQkvBackwardArgs args = {
      .dtype = dtype,
      .table_dtype = table_dtype,
      .q = at(dq),
      .k = at(dk),
      .v = at(dv),
      .cos = cos_rows.tensor.const_data_ptr(),
      .cos_stride = cos_rows.stride,
      .sin = sin_rows.tensor.const_data_ptr(),
      .sin_stride = sin_rows.stride,
      .positions = indices,
      .heads = heads,
      .kv_heads = kv_heads,
      .half = head_dim / 2,
      .dqkv = dqkv.mutable_data_ptr(),
  };
  torch::stable::parallel_for(0, rows, row_grain(shape[1]),
                              [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
  return dqkv;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(flashvl_cpu, m) {
  m.def(
      "rope_qkv_backward(Tensor dq, Tensor dk, Tensor dv, Tensor cos, Tensor sin,"
      " Tensor? positions) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(flashvl_cpu, CPU, m) {
  m.impl("rope_qkv_backward", TORCH_BOX(&rope_qkv_backward));
}

}  // namespace flashvl
