// What every binding needs to turn tensors into pointers and strides.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>

#include "../cpu/types.h"

namespace flashvl {

using torch::stable::Tensor;

// A tensor [..., C] seen as rows of C contiguous elements, a fixed stride apart.
struct __attribute__((visibility("hidden"))) Rows {
  Tensor tensor;  // keeps the memory alive: a copy where the strides did not fit
  int64_t count;
  int64_t columns;
  int64_t stride;  // in elements
};

Rows as_rows(const Tensor& tensor);

// Rows a task should have, so that starting it costs little next to its work: 32768 elements, the
// grain PyTorch's own element-wise kernels use.
int64_t row_grain(int64_t columns);

// Throws std::invalid_argument ("op: name ...") unless the tensor is on the CPU, in float32,
// bfloat16 or float16.
cpu::DType dtype_of(const char* op, const char* name, const Tensor& tensor);

// Throws std::invalid_argument unless the tensor is on the CPU in the dtype of `like`.
void check_like(const char* op, const char* name, const Tensor& tensor, const Tensor& like);

// Throws std::invalid_argument unless the tensor is on the CPU and holds int64.
void check_index(const char* op, const char* name, const Tensor& tensor);

// The tensor itself where it is contiguous, else a copy.
Tensor packed(const Tensor& tensor);

// Throws std::invalid_argument unless the two shapes are equal.
void check_shape(const char* op, const char* name, const Tensor& tensor,
                 torch::headeronly::IntHeaderOnlyArrayRef shape);

// A contiguous uninitialised tensor in the dtype of `like`.
Tensor empty(const Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef shape);

// `result` where there is one, which must have that shape, dtype and be contiguous; else empty.
Tensor result_or_empty(const char* op, const std::optional<Tensor>& result, const Tensor& like,
                       torch::headeronly::IntHeaderOnlyArrayRef shape);

}  // namespace flashvl
