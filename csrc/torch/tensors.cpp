// See tensors.h. The Python checks of an op come first and speak to users; these guard the memory
// against callers of the raw torch.ops.flashvl_cpu functions.

#include "tensors.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <stdexcept>
#include <string>

#include "huge_pages.h"

namespace flashvl {
namespace {

using torch::headeronly::IntHeaderOnlyArrayRef;
using torch::headeronly::ScalarType;

// Axes up to which `empty` allocates directly: asking the dispatcher for new_empty takes 1 to 2 us,
// as much as a whole kernel of a decode step.
constexpr size_t kAxes = 8;

// Results of this size are written in large pages. A product writes them a few columns at a time,
// down all rows, and each row is a page: 1024 x 4304 in pages of 4 KiB took half as long again.
constexpr size_t kLarge = size_t{2} << 20;

[[noreturn]] void refuse(const char* op, const char* name, const std::string& what) {
  throw std::invalid_argument(std::string(op) + ": " + name + " " + what);
}

std::string text(IntHeaderOnlyArrayRef shape) {
  std::string out = "[";
  for (size_t i = 0; i < shape.size(); ++i) {
    out += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  }
  return out + "]";
}

// The stride between rows when the leading axes step evenly; -1 when they do not. Axes of size 1
// are never stepped along, so their strides do not matter.
int64_t even_stride(const Tensor& tensor) {
  const int64_t last = tensor.dim() - 1;
  if (tensor.size(last) > 1 && tensor.stride(last) != 1) return -1;
  int64_t stride = tensor.size(last);
  int64_t rows_inside = 0;
  for (int64_t axis = last - 1; axis >= 0; --axis) {
    const int64_t size = tensor.size(axis);
    if (size == 1) continue;
    if (rows_inside == 0) {
      stride = tensor.stride(axis);
      rows_inside = size;
    } else if (tensor.stride(axis) == stride * rows_inside) {
      rows_inside *= size;
    } else {
      return -1;
    }
  }
  return stride;
}

}  // namespace

Rows as_rows(const Tensor& tensor) {
  const int64_t columns = tensor.size(tensor.dim() - 1);
  int64_t count = 1;
  for (int64_t axis = 0; axis + 1 < tensor.dim(); ++axis) count *= tensor.size(axis);
  if (count == 0 || columns == 0) return {tensor, count, columns, columns};
  const int64_t stride = even_stride(tensor);
  if (stride < 0) return {torch::stable::contiguous(tensor), count, columns, columns};
  return {tensor, count, columns, stride};
}

int64_t row_grain(int64_t columns) {
  return std::max<int64_t>(1, 32768 / std::max<int64_t>(1, columns));
}

cpu::DType dtype_of(const char* op, const char* name, const Tensor& tensor) {
  if (!tensor.is_cpu()) refuse(op, name, "is not on the CPU; move it there");
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return cpu::DType::f32;
    case ScalarType::BFloat16:
      return cpu::DType::bf16;
    case ScalarType::Half:
      return cpu::DType::f16;
    default:
      refuse(op, name,
             std::string("has dtype ") + torch::headeronly::toString(tensor.scalar_type()) +
                 "; the CPU kernel needs float32, bfloat16 or float16: convert it, or use the "
                 "torch backend");
  }
}

void check_like(const char* op, const char* name, const Tensor& tensor, const Tensor& like) {
  if (!tensor.is_cpu()) refuse(op, name, "is not on the CPU; move it there");
  if (tensor.scalar_type() != like.scalar_type()) {
    refuse(op, name,
           std::string("has dtype ") + torch::headeronly::toString(tensor.scalar_type()) +
               "; needs " + torch::headeronly::toString(like.scalar_type()) +
               " like the first tensor");
  }
}

void check_index(const char* op, const char* name, const Tensor& tensor) {
  if (!tensor.is_cpu()) refuse(op, name, "is not on the CPU; move it there");
  if (tensor.scalar_type() != ScalarType::Long) {
    refuse(op, name,
           std::string("has dtype ") + torch::headeronly::toString(tensor.scalar_type()) +
               "; needs Long (int64)");
  }
}

Tensor packed(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

void check_shape(const char* op, const char* name, const Tensor& tensor,
                 IntHeaderOnlyArrayRef shape) {
  const IntHeaderOnlyArrayRef sizes = tensor.sizes();
  if (sizes.size() == shape.size() && std::equal(sizes.begin(), sizes.end(), shape.begin())) return;
  refuse(op, name, "has shape " + text(sizes) + "; needs " + text(shape));
}

Tensor empty(const Tensor& like, IntHeaderOnlyArrayRef shape) {
  std::array<int64_t, kAxes> strides;
  if (!like.is_cpu() || shape.size() > strides.size()) return torch::stable::new_empty(like, shape);
  int64_t step = 1;
  for (size_t axis = shape.size(); axis-- > 0;) {
    strides[axis] = step;
    step *= std::max<int64_t>(shape[axis], 1);
  }
  int32_t dtype;
  AtenTensorHandle made;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(shape.size()),
                                                         shape.data(), strides.data(), dtype,
                                                         aoti_torch_device_type_cpu(), 0, &made));
  const Tensor out(made);
  const size_t bytes = static_cast<size_t>(out.numel()) * out.element_size();
  if (bytes >= kLarge) advise_huge_pages(out.mutable_data_ptr(), bytes);
  return out;
}

Tensor result_or_empty(const char* op, const std::optional<Tensor>& result, const Tensor& like,
                       IntHeaderOnlyArrayRef shape) {
  if (!result) return empty(like, shape);
  check_like(op, "the result", *result, like);
  check_shape(op, "the result", *result, shape);
  if (!result->is_contiguous()) refuse(op, "the result", "is not contiguous");
  return *result;
}

}  // namespace flashvl
