// What the bindings of the matrix products share: weights from schema arguments, and the split of a
// product over threads.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "../cpu/linear.h"
#include "tensors.h"

namespace flashvl {

// A weight [rows, columns] as op schemas pass it (flashvl_kernels/packing.py).
struct __attribute__((visibility("hidden"))) WeightTensors {
  Tensor data;  // kept alive: a copy where rows of floats had no unit stride
  std::optional<Tensor> scale;
  cpu::Weights weights;
};

// Throws std::invalid_argument ("op: name ...") where the parts do not fit together, the format is
// unknown, or the weight does not multiply `columns` channels of x's dtype.
WeightTensors as_weight(const char* op, const char* name, const Tensor& data,
                        const std::optional<Tensor>& scale, const std::string& format,
                        int64_t format_columns, const Tensor& x, int64_t columns);

// Rows [first, first + count) of a weight; in panels, `first` is a multiple of 16.
cpu::Weights weight_rows(const cpu::Weights& weights, int64_t first, int64_t count);

// The norm before a product; both tensors are contiguous vectors of x's dtype.
struct __attribute__((visibility("hidden"))) NormTensors {
  std::optional<Tensor> weight, bias;
  float eps;
};

NormTensors as_norm(const char* op, const std::optional<Tensor>& weight,
                    const std::optional<Tensor>& bias, double eps, const Tensor& x);

// A vector [size] of x's dtype, contiguous.
Tensor as_vector(const char* op, const char* name, const Tensor& tensor, int64_t size,
                 const Tensor& x);

// Runs the product on the rows x after the norm; plans it and finds its working memory.
void multiply(const Rows& x, const NormTensors& norm, cpu::ProductArgs product);

// The same, and `second` on what `first` gives, which never becomes a tensor.
void multiply_twice(const Rows& x, const NormTensors& norm, cpu::ProductArgs first,
                    cpu::ProductArgs second);

}  // namespace flashvl
