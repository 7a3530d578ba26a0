// flashvl_cpu::swiglu: checks, allocation and the split over rows for csrc/cpu/swiglu.cpp.

#include "../cpu/swiglu.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <stdexcept>
#include <vector>

#include "../cpu/dispatch/dispatch.h"
#include "tensors.h"

namespace flashvl {
namespace {

Tensor swiglu(Tensor gate_up) {
  static cpu::SwigluRows* const kernel = FLASHVL_SELECT(cpu::SwigluRows, swiglu);
  const cpu::DType dtype = dtype_of("swiglu", "gate_up", gate_up);
  if (gate_up.dim() == 0 || gate_up.size(gate_up.dim() - 1) % 2 != 0) {
    throw std::invalid_argument(
        "swiglu: gate_up is a scalar or has an odd last axis; needs [..., 2F]");
  }
  const auto sizes = gate_up.sizes();
  std::vector<int64_t> shape(sizes.begin(), sizes.end());
  shape.back() /= 2;
  Tensor out = empty(gate_up, {shape.data(), shape.size()});
  const Rows rows = as_rows(gate_up);
  if (rows.count == 0 || rows.columns == 0) return out;

  const cpu::SwigluArgs args = {
      .dtype = dtype,
      .gate_up = rows.tensor.const_data_ptr(),
      .stride = rows.stride,
      .out = out.mutable_data_ptr(),
      .columns = shape.back(),
  };
  torch::stable::parallel_for(0, rows.count, row_grain(rows.columns),
                              [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(flashvl_cpu, m) { m.def("swiglu(Tensor gate_up) -> Tensor"); }

STABLE_TORCH_LIBRARY_IMPL(flashvl_cpu, CPU, m) { m.impl("swiglu", TORCH_BOX(&swiglu)); }

}  // namespace flashvl
