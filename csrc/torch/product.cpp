// See product.h.

#include "product.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <stdexcept>

#include "../cpu/dispatch/dispatch.h"
#include "product_chain.h"
#include "scratch.h"

namespace flashvl {
namespace {

using torch::headeronly::ScalarType;

// Rows a packing task should have: 32 is a block of AMX tiles.
constexpr int64_t kPackGrain = 32;

int64_t round_up(int64_t count, int64_t multiple) {
  return (count + multiple - 1) / multiple * multiple;
}

[[noreturn]] void refuse(const char* op, const char* name, const std::string& what) {
  throw std::invalid_argument(std::string(op) + ": " + name + " " + what);
}

struct Format {
  cpu::WeightFormat format;
  bool panels;
};

Format format_of(const char* op, const char* name, const std::string& text) {
  if (text == "bf16") return {cpu::WeightFormat::floats, false};
  if (text == "int8") return {cpu::WeightFormat::int8, false};
  if (text == "int4") return {cpu::WeightFormat::int4, false};
  if (text == "bf16_panels") return {cpu::WeightFormat::floats, true};
  if (text == "int8_panels") return {cpu::WeightFormat::int8, true};
  if (text == "int4_panels") return {cpu::WeightFormat::int4, true};
  refuse(op, name, "has the unknown format " + text);
}

// Elements (int4: bytes) of a row of data.
int64_t stored_width(const Format& format, int64_t columns) {
  const int64_t multiple = format.format == cpu::WeightFormat::int4 ? cpu::kGroup : cpu::kDepth;
  const int64_t padded = format.panels ? round_up(columns, multiple) : columns;
  return format.format == cpu::WeightFormat::int4 ? (padded + 1) / 2 : padded;
}

void check_data(const char* op, const char* name, const Tensor& data, const Format& format,
                int64_t columns, const Tensor& x) {
  if (data.dim() != 2) refuse(op, name, "does not have two axes");
  const int64_t shape[2] = {data.size(0), stored_width(format, columns)};
  check_shape(op, name, data, {shape, 2});
  if (format.panels && data.size(0) % cpu::kPanel != 0) {
    refuse(op, name, "is in panels but its rows are not a multiple of 16");
  }
  if (format.format == cpu::WeightFormat::floats) return check_like(op, name, data, x);
  const bool is_signed = format.format == cpu::WeightFormat::int8 && !format.panels;
  if (!data.is_cpu() || data.scalar_type() != (is_signed ? ScalarType::Char : ScalarType::Byte)) {
    refuse(op, name, is_signed ? "needs int8 data on the CPU" : "needs uint8 data on the CPU");
  }
}

Tensor checked_scale(const char* op, const char* name, const std::optional<Tensor>& scale,
                     const Format& format, int64_t rows, int64_t columns) {
  const int64_t shape[2] = {rows, (columns + cpu::kGroup - 1) / cpu::kGroup};
  if (!scale || !scale->is_cpu() || scale->scalar_type() != ScalarType::Float) {
    refuse(op, name, "needs a float32 scale on the CPU");
  }
  const size_t axes = format.format == cpu::WeightFormat::int4 ? 2 : 1;
  check_shape(op, name, *scale, {shape, axes});
  return torch::stable::contiguous(*scale);
}

}  // namespace

WeightTensors as_weight(const char* op, const char* name, const Tensor& data,
                        const std::optional<Tensor>& scale, const std::string& format_name,
                        int64_t format_columns, const Tensor& x, int64_t columns) {
  const Format format = format_of(op, name, format_name);
  if (format_columns != columns) refuse(op, name, "does not have a column for each channel");
  check_data(op, name, data, format, columns, x);
  const Rows rows = as_rows(data);
  WeightTensors out = {rows.tensor, std::nullopt, {}};
  out.weights = {
      .format = format.format,
      .dtype = dtype_of(op, "x", x),
      .panels = format.panels,
      .data = nullptr,
      .row_stride = rows.stride,
      .scale = nullptr,
      .rows = data.size(0),
      .columns = columns,
  };
  if (format.panels) {
    out.data = torch::stable::contiguous(data);
    out.weights.row_stride = data.size(1);
  }
  out.weights.data = out.data.const_data_ptr();
  if (format.format != cpu::WeightFormat::floats) {
    out.scale = checked_scale(op, name, scale, format, data.size(0), columns);
    out.weights.scale = static_cast<const float*>(out.scale->const_data_ptr());
  }
  return out;
}

cpu::Weights weight_rows(const cpu::Weights& weights, int64_t first, int64_t count) {
  cpu::Weights out = weights;
  const bool wide = weights.format == cpu::WeightFormat::floats;
  const int64_t element = !wide ? 1 : weights.dtype == cpu::DType::f32 ? 4 : 2;
  out.data = static_cast<const char*>(weights.data) + first * weights.row_stride * element;
  if (weights.format == cpu::WeightFormat::int8) out.scale += first;
  if (weights.format == cpu::WeightFormat::int4) {
    out.scale += first * ((weights.columns + cpu::kGroup - 1) / cpu::kGroup);
  }
  out.rows = count;
  return out;
}

Tensor as_vector(const char* op, const char* name, const Tensor& tensor, int64_t size,
                 const Tensor& x) {
  check_like(op, name, tensor, x);
  check_shape(op, name, tensor, {&size, 1});
  return torch::stable::contiguous(tensor);
}

NormTensors as_norm(const char* op, const std::optional<Tensor>& weight,
                    const std::optional<Tensor>& bias, double eps, const Tensor& x) {
  const int64_t channels = x.size(x.dim() - 1);
  NormTensors out = {std::nullopt, std::nullopt, static_cast<float>(eps)};
  if (weight) out.weight = as_vector(op, "norm_weight", *weight, channels, x);
  if (weight && bias) out.bias = as_vector(op, "norm_bias", *bias, channels, x);
  return out;
}

namespace {

void plan(cpu::ProductArgs& product) {
  static cpu::PlanProduct* const kernel = FLASHVL_SELECT(cpu::PlanProduct, product_plan);
  product.threads = torch::stable::get_num_threads();
  product.plan = kernel(product);
}

cpu::PackArgs pack_args(const cpu::ProductArgs& product, const Rows& x, const NormTensors& norm) {
  return {
      .plan = product.plan,
      .dtype = product.dtype,
      .rows = product.rows,
      .w = product.w,
      .floats = false,
      .x = x.tensor.const_data_ptr(),
      .x_stride = x.stride,
      .norm_weight = norm.weight ? norm.weight->const_data_ptr() : nullptr,
      .norm_bias = norm.bias ? norm.bias->const_data_ptr() : nullptr,
      .eps = norm.eps,
      .packed = nullptr,
  };
}

void pack(const cpu::PackArgs& args) {
  static cpu::PackRows* const kernel = FLASHVL_SELECT(cpu::PackRows, pack_rows);
  if (args.plan.few) return kernel(args, 0, args.rows);
  torch::stable::parallel_for(0, args.plan.packed_rows, kPackGrain,
                              [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

int64_t workspace_bytes(const cpu::ProductPlan& plan) {
  return plan.tasks * round_up(plan.workspace_bytes, kLine);
}

void run(const cpu::ProductArgs& product, char* workspace) {
  static cpu::Product* const kernel = FLASHVL_SELECT(cpu::Product, product);
  const int64_t bytes = round_up(product.plan.workspace_bytes, kLine);
  torch::stable::parallel_for(0, product.plan.tasks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) kernel(product, task, workspace + task * bytes);
  });
}

}  // namespace

void multiply(const Rows& x, const NormTensors& norm, cpu::ProductArgs product) {
  if (chains(product)) return multiply_chain(x, norm, product, nullptr);
  plan(product);
  ScratchParts parts;
  const int64_t packed = parts.add(product.plan.packed_bytes);
  const int64_t workspace = parts.add(workspace_bytes(product.plan));
  char* const memory = parts.allocate();
  cpu::PackArgs rows = pack_args(product, x, norm);
  product.packed = rows.packed = memory + packed;
  pack(rows);
  run(product, memory + workspace);
}

// Many rows: the first product writes the packed rows of the second. Few rows are packed by whole
// rows (int8 activations share a scale), so they pass through fp32.
void multiply_twice(const Rows& x, const NormTensors& norm, cpu::ProductArgs first,
                    cpu::ProductArgs second) {
  if (chains(first) && chains(second)) return multiply_chain(x, norm, first, &second);
  plan(first);
  plan(second);
  const bool few = first.plan.few;
  const int64_t width = first.w.rows;
  ScratchParts parts;
  const int64_t packed = parts.add(first.plan.packed_bytes);
  const int64_t floats = parts.add(few ? first.rows * width * 4 : 0);
  const int64_t packed_again = parts.add(second.plan.packed_bytes);
  const int64_t workspace =
      parts.add(std::max(workspace_bytes(first.plan), workspace_bytes(second.plan)));
  char* const memory = parts.allocate();

  cpu::PackArgs rows = pack_args(first, x, norm);
  first.packed = rows.packed = memory + packed;
  first.output = few ? cpu::Output::floats : cpu::Output::packed;
  first.out = memory + (few ? floats : packed_again);
  first.out_stride = width;
  second.packed = memory + packed_again;
  pack(rows);
  run(first, memory + workspace);
  if (few) {
    cpu::PackArgs again = pack_args(second, x, {});
    again.floats = true;
    again.x = memory + floats;
    again.x_stride = width;
    again.packed = memory + packed_again;
    pack(again);
  }
  run(second, memory + workspace);
}

}  // namespace flashvl
