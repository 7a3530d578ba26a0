// flashvl_cpu::rope_qkv and rope_qkv_cached: checks, allocation and the split over rows for
// csrc/cpu/rope_qkv.cpp.

#include "../cpu/rope_qkv.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <array>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>

#include "../cpu/dispatch/dispatch.h"
#include "tape.h"
#include "tensors.h"

namespace flashvl {
namespace {

constexpr const char* kOp = "rope_qkv";

// Throws unless all of indices [0, count) lie in [low, high): they are used as addresses.
void check_range(const char* name, const int64_t* indices, int64_t count, int64_t low,
                 int64_t high) {
  for (int64_t i = 0; i < count; ++i) {
    if (indices[i] >= low && indices[i] < high) continue;
    throw std::invalid_argument(std::string(kOp) + ": " + name + " has " +
                                std::to_string(indices[i]) + "; needs " + std::to_string(low) +
                                " to " + std::to_string(high - 1));
  }
}

// The tensors of one call that must outlive it, and the arguments made of them.
struct __attribute__((visibility("hidden"))) Call {
  Rows qkv, cos, sin;
  std::optional<Tensor> positions;
  int64_t head_dim;
  Tensor q;
  cpu::RopeQkvArgs args;
};

int64_t head_dim_of(const Tensor& qkv, int64_t heads, int64_t kv_heads) {
  const bool fits = qkv.dim() == 2 && heads > 0 && kv_heads > 0 && qkv.size(1) > 0 &&
                    qkv.size(1) % (2 * (heads + 2 * kv_heads)) == 0;
  if (!fits) {
    throw std::invalid_argument(
        "rope_qkv: qkv needs [N, (heads + 2 kv_heads) * D] with an even D above 0");
  }
  return qkv.size(1) / (heads + 2 * kv_heads);
}

Call prepare(const Tensor& qkv, const Tensor& cos, const Tensor& sin,
             const std::optional<Tensor>& positions, int64_t heads, int64_t kv_heads,
             const std::optional<Tensor>& q = std::nullopt) {
  const cpu::DType dtype = dtype_of(kOp, "qkv", qkv), table_dtype = dtype_of(kOp, "cos", cos);
  const int64_t head_dim = head_dim_of(qkv, heads, kv_heads), rows = qkv.size(0);
  if (table_dtype != cpu::DType::f32) check_like(kOp, "cos", cos, qkv);
  check_like(kOp, "sin", sin, cos);
  if (cos.dim() != 2) throw std::invalid_argument("rope_qkv: cos needs [P, D/2]");
  const std::array<int64_t, 2> table = {cos.size(0), head_dim / 2};
  check_shape(kOp, "cos", cos, {table.data(), 2});
  check_shape(kOp, "sin", sin, {table.data(), 2});
  const int64_t* at = nullptr;
  std::optional<Tensor> kept;
  if (positions) {
    check_index(kOp, "positions", *positions);
    check_shape(kOp, "positions", *positions, {&rows, 1});
    kept = packed(*positions);
    at = static_cast<const int64_t*>(kept->const_data_ptr());
    check_range("positions", at, rows, 0, table[0]);
  } else if (rows > table[0]) {
    throw std::invalid_argument("rope_qkv: qkv has more rows than cos and no positions");
  }
  const std::array<int64_t, 3> shape = {rows, heads, head_dim};
  Call call = {as_rows(qkv),
               as_rows(cos),
               as_rows(sin),
               kept,
               head_dim,
               result_or_empty(kOp, q, qkv, {shape.data(), 3}),
               {}};
  call.args = {
      .dtype = dtype,
      .table_dtype = table_dtype,
      .qkv = call.qkv.tensor.const_data_ptr(),
      .qkv_stride = call.qkv.stride,
      .cos = call.cos.tensor.const_data_ptr(),
      .cos_stride = call.cos.stride,
      .sin = call.sin.tensor.const_data_ptr(),
      .sin_stride = call.sin.stride,
      .positions = at,
      .slots = nullptr,
      .capacity = rows,
      .heads = heads,
      .kv_heads = kv_heads,
      .half = head_dim / 2,
      .q = call.q.mutable_data_ptr(),
      .k = {},
      .v = {},
  };
  return call;
}

void run(const Call& call) {
  static cpu::RopeQkvRows* const kernel = FLASHVL_SELECT(cpu::RopeQkvRows, rope_qkv);
  torch::stable::parallel_for(0, call.qkv.count, row_grain(call.qkv.columns),
                              [&](int64_t begin, int64_t end) { kernel(call.args, begin, end); });
}

std::tuple<Tensor, Tensor, Tensor> rope_qkv(Tensor qkv, Tensor cos, Tensor sin,
                                            std::optional<Tensor> positions, int64_t heads,
                                            int64_t kv_heads) {
  Call call = prepare(qkv, cos, sin, positions, heads, kv_heads);
  const std::array<int64_t, 3> shape = {call.qkv.count, kv_heads, call.head_dim};
  Tensor k = empty(qkv, {shape.data(), 3}), v = empty(qkv, {shape.data(), 3});
  if (call.qkv.count == 0) return {call.q, k, v};
  const int64_t row = kv_heads * call.head_dim;
  call.args.k = {k.mutable_data_ptr(), 0, call.head_dim, row, 1};
  call.args.v = {v.mutable_data_ptr(), 0, call.head_dim, row, 1};
  run(call);
  return {call.q, k, v};
}

cpu::RopeTarget target(const Tensor& cache) {
  const auto strides = cache.strides();
  return {cache.mutable_data_ptr(), strides[0], strides[1], strides[2], strides[3]};
}

Tensor rope_qkv_cached_into(const std::optional<Tensor>& q, Tensor qkv, Tensor cos, Tensor sin,
                            std::optional<Tensor> positions, int64_t heads, int64_t kv_heads,
                            Tensor k_cache, Tensor v_cache, Tensor slots) {
  Call call = prepare(qkv, cos, sin, positions, heads, kv_heads, q);
  check_like(kOp, "k_cache", k_cache, qkv);
  check_like(kOp, "v_cache", v_cache, qkv);
  check_index(kOp, "slots", slots);
  check_shape(kOp, "slots", slots, {&call.qkv.count, 1});
  if (k_cache.dim() != 4) throw std::invalid_argument("rope_qkv: k_cache needs [B, Hkv, S, D]");
  const int64_t batch = k_cache.size(0), capacity = k_cache.size(2);
  const std::array<int64_t, 4> shape = {batch, kv_heads, capacity, call.head_dim};
  check_shape(kOp, "k_cache", k_cache, {shape.data(), 4});
  check_shape(kOp, "v_cache", v_cache, {shape.data(), 4});
  if (call.qkv.count == 0) return call.q;
  const Tensor kept = packed(slots);
  call.args.slots = static_cast<const int64_t*>(kept.const_data_ptr());
  check_range("slots", call.args.slots, call.qkv.count, -1, batch * capacity);
  call.args.capacity = capacity;
  call.args.k = target(k_cache);
  call.args.v = target(v_cache);
  run(call);
  return call.q;
}

Tensor rope_qkv_cached(Tensor qkv, Tensor cos, Tensor sin, std::optional<Tensor> positions,
                       int64_t heads, int64_t kv_heads, Tensor k_cache, Tensor v_cache,
                       Tensor slots) {
  return taped(rope_qkv_cached_into, qkv, cos, sin, positions, heads, kv_heads, k_cache, v_cache,
               slots);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(flashvl_cpu, m) {
  m.def(
      "rope_qkv(Tensor qkv, Tensor cos, Tensor sin, Tensor? positions, int heads, int kv_heads)"
      " -> (Tensor, Tensor, Tensor)");
  m.def(
      "rope_qkv_cached(Tensor qkv, Tensor cos, Tensor sin, Tensor? positions, int heads,"
      " int kv_heads, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor slots) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(flashvl_cpu, CPU, m) {
  m.impl("rope_qkv", TORCH_BOX(&rope_qkv));
  m.impl("rope_qkv_cached", TORCH_BOX(&rope_qkv_cached));
}

}  // namespace flashvl
