// flashvl_cpu::argmax_head: checks, allocation and the split over threads for
// csrc/cpu/argmax_head.cpp.

#include "../cpu/argmax_head.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>

#include "../cpu/dispatch/dispatch.h"
#include "../cpu/matrix/few_rows_size.h"
#include "product.h"
#include "scratch.h"
#include "tensors.h"

namespace flashvl {
namespace {

// Divides the vocabulary among the threads and the scratch memory among the parts.
void plan(cpu::ArgmaxHeadArgs& args) {
  const int64_t panels = (args.w.rows + cpu::kPanel - 1) / cpu::kPanel;
  const int64_t threads = torch::stable::get_num_threads();
  args.tasks = std::min(std::max<int64_t>(threads, 1), panels);
  const int64_t most = (panels + args.tasks - 1) / args.tasks * cpu::kPanel;
  args.capacity = std::min(args.k, most);

  ScratchParts parts;
  const int64_t row = parts.add(args.w.columns * int64_t{sizeof(float)});
  const int64_t prepared = parts.add(cpu::kFewRows * cpu::few_rows_bytes(args.w));
  const int64_t best =
      parts.add(args.tasks * cpu::kFewRows * args.capacity * int64_t{sizeof(cpu::Candidate)});
  const int64_t taken = parts.add(args.tasks * int64_t{sizeof(int64_t)});
  char* const memory = parts.allocate();
  args.row = reinterpret_cast<float*>(memory + row);
  args.prepared = memory + prepared;
  args.best = reinterpret_cast<cpu::Candidate*>(memory + best);
  args.taken = reinterpret_cast<int64_t*>(memory + taken);
}

void run(const cpu::ArgmaxHeadArgs& args, int64_t rows) {
  static auto* const prepare = FLASHVL_SELECT(cpu::ArgmaxHeadPrepare, argmax_head_prepare);
  static auto* const search = FLASHVL_SELECT(cpu::ArgmaxHeadSearch, argmax_head_search);
  static auto* const merge = FLASHVL_SELECT(cpu::ArgmaxHeadMerge, argmax_head_merge);
  for (int64_t first = 0; first < rows; first += cpu::kFewRows) {
    const int count = static_cast<int>(std::min<int64_t>(cpu::kFewRows, rows - first));
    prepare(args, first, count);
    torch::stable::parallel_for(0, args.tasks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) search(args, task, count);
    });
    merge(args, first, count);
  }
}

std::tuple<Tensor, Tensor> argmax_head(Tensor x, Tensor norm_weight, double norm_eps, Tensor w_data,
                                       std::optional<Tensor> w_scale, std::string w_format,
                                       int64_t w_columns, int64_t k) {
  const cpu::DType dtype = dtype_of("argmax_head", "x", x);
  if (x.dim() != 2) throw std::invalid_argument("argmax_head: x does not have two axes [B, C]");
  const int64_t columns = x.size(1);
  const Tensor norm = as_vector("argmax_head", "norm_weight", norm_weight, columns, x);
  const WeightTensors vocabulary =
      as_weight("argmax_head", "w_vocab", w_data, w_scale, w_format, w_columns, x, columns);
  if (k < 1 || k > vocabulary.weights.rows) {
    throw std::invalid_argument("argmax_head: k is " + std::to_string(k) + "; needs 1 to " +
                                std::to_string(vocabulary.weights.rows) + ", the rows of w_vocab");
  }

  const int64_t shape[2] = {x.size(0), k};
  Tensor values = empty(x, {shape, 2});
  Tensor indices = torch::stable::new_empty(x, {shape, 2}, torch::headeronly::ScalarType::Long);
  const Rows rows = as_rows(x);
  if (rows.count == 0) return {values, indices};

  cpu::ArgmaxHeadArgs args = {
      .dtype = dtype,
      .x = rows.tensor.const_data_ptr(),
      .x_stride = rows.stride,
      .norm_weight = norm.const_data_ptr(),
      .eps = static_cast<float>(norm_eps),
      .w = vocabulary.weights,
      .k = k,
      .tasks = 0,
      .capacity = 0,
      .row = nullptr,
      .prepared = nullptr,
      .best = nullptr,
      .taken = nullptr,
      .values = values.mutable_data_ptr(),
      .indices = static_cast<int64_t*>(indices.mutable_data_ptr()),
  };
  plan(args);
  run(args, rows.count);
  return {values, indices};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(flashvl_cpu, m) {
  m.def(
      "argmax_head(Tensor x, Tensor norm_weight, float norm_eps, Tensor w_data, Tensor? w_scale,"
      " str w_format, SymInt w_columns, int k) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(flashvl_cpu, CPU, m) { m.impl("argmax_head", TORCH_BOX(&argmax_head)); }

}  // namespace flashvl
