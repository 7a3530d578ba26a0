// flashvl_cpu::merge_image_tokens: checks, allocation and the split over rows for
// csrc/cpu/merge_image_tokens.cpp.

#include "../cpu/merge_image_tokens.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <stdexcept>

#include "../cpu/dispatch/dispatch.h"
#include "tensors.h"

namespace flashvl {
namespace {

constexpr const char* kOp = "merge_image_tokens";

Tensor merge_image_tokens(Tensor embeds, Tensor input_ids, Tensor image_rows) {
  static cpu::MergeImageTokensRows* const kernel =
      FLASHVL_SELECT(cpu::MergeImageTokensRows, merge_image_tokens);
  const int64_t bytes = dtype_of(kOp, "embeds", embeds) == cpu::DType::f32 ? 4 : 2;
  if (embeds.dim() == 0) throw std::invalid_argument("merge_image_tokens: embeds is a scalar");
  const auto sizes = embeds.sizes();
  const int64_t columns = sizes[sizes.size() - 1];
  check_index(kOp, "input_ids", input_ids);
  check_shape(kOp, "input_ids", input_ids, {sizes.data(), sizes.size() - 1});
  check_like(kOp, "image_rows", image_rows, embeds);
  if (image_rows.dim() != 2 || image_rows.size(1) != columns) {
    throw std::invalid_argument(
        "merge_image_tokens: image_rows needs [M, hidden], hidden as in embeds");
  }

  Tensor out = empty(embeds, sizes);
  const Rows rows = as_rows(embeds), images = as_rows(image_rows);
  if (rows.count == 0 || columns == 0) return out;
  const Tensor ids = packed(input_ids);
  const cpu::MergeImageTokensArgs args = {
      .ids = static_cast<const int64_t*>(ids.const_data_ptr()),
      .embeds = static_cast<const char*>(rows.tensor.const_data_ptr()),
      .embeds_stride = rows.stride * bytes,
      .images = static_cast<const char*>(images.tensor.const_data_ptr()),
      .images_stride = images.stride * bytes,
      .image_rows = images.count,
      .out = static_cast<char*>(out.mutable_data_ptr()),
      .row_bytes = columns * bytes,
  };
  torch::stable::parallel_for(0, rows.count, row_grain(columns),
                              [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(flashvl_cpu, m) {
  m.def("merge_image_tokens(Tensor embeds, Tensor input_ids, Tensor image_rows) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(flashvl_cpu, CPU, m) {
  m.impl("merge_image_tokens", TORCH_BOX(&merge_image_tokens));
}

}  // namespace flashvl
