// flashvl_cpu::decode_attention: checks, allocation and the split over keys for
// csrc/cpu/decode_attention.cpp.

#include "../cpu/decode_attention.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <stdexcept>
#include <string>

#include "../cpu/dispatch/dispatch.h"
#include "scratch.h"
#include "tape.h"
#include "tensors.h"

namespace flashvl {
namespace {

constexpr const char* kOp = "decode_attention";

// Bytes of keys and values below which one thread is done before a second one has woken up.
constexpr int64_t kSerialBytes = int64_t{1} << 17;

// The tensor, or a copy of it whose channels are contiguous.
Tensor with_channels(const Tensor& tensor) {
  const int64_t last = tensor.dim() - 1;
  if (tensor.size(last) == 1 || tensor.stride(last) == 1) return tensor;
  return torch::stable::contiguous(tensor);
}

void check(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& lengths) {
  check_like(kOp, "k_cache", k, q);
  check_like(kOp, "v_cache", v, q);
  check_index(kOp, "lengths", lengths);
  if (q.dim() != 3 || k.dim() != 4) {
    throw std::invalid_argument(
        "decode_attention: needs q [B, H, D] and k_cache, v_cache [B, Hkv, S, D]");
  }
  const auto queries = q.sizes(), keys = k.sizes();
  if (keys[1] == 0 || queries[1] % keys[1] != 0) {
    throw std::invalid_argument("decode_attention: the KV heads do not divide the query heads");
  }
  const std::array<int64_t, 4> shape = {queries[0], keys[1], keys[2], queries[2]};
  check_shape(kOp, "k_cache", k, {shape.data(), 4});
  check_shape(kOp, "v_cache", v, {shape.data(), 4});
  check_shape(kOp, "lengths", lengths, {shape.data(), 1});
}

int64_t blocks(int64_t length) { return (length + cpu::kDecodeKeys - 1) / cpu::kDecodeKeys; }

// Keys and values to read, and tasks, over all sequences and KV heads.
struct Plan {
  int64_t keys, tasks;
};

Plan plan(const int64_t* lengths, int64_t batch, int64_t capacity, int64_t kv_heads) {
  Plan sum = {0, 0};
  for (int64_t b = 0; b < batch; ++b) {
    if (lengths[b] < 0 || lengths[b] > capacity) {
      throw std::invalid_argument(std::string(kOp) + ": lengths[" + std::to_string(b) + "] is " +
                                  std::to_string(lengths[b]) + "; needs 0 to " +
                                  std::to_string(capacity));
    }
    sum.keys += kv_heads * lengths[b];
    sum.tasks += kv_heads * blocks(lengths[b]);
  }
  return sum;
}

Tensor decode_attention_into(const std::optional<Tensor>& result, Tensor q, Tensor k_cache,
                             Tensor v_cache, Tensor lengths, std::optional<double> scale) {
  static cpu::DecodeAttentionTasks* const tasks =
      FLASHVL_SELECT(cpu::DecodeAttentionTasks, decode_attention_tasks);
  static cpu::DecodeAttentionPairs* const pairs =
      FLASHVL_SELECT(cpu::DecodeAttentionPairs, decode_attention_pairs);
  const cpu::DType dtype = dtype_of(kOp, "q", q);
  check(q, k_cache, v_cache, lengths);
  Tensor out = result_or_empty(kOp, result, q, q.sizes());
  const int64_t batch = q.size(0), heads = q.size(1), head_dim = q.size(2);
  const int64_t kv_heads = k_cache.size(1), group = heads / kv_heads;
  if (batch == 0 || heads == 0 || head_dim == 0) return out;

  const Tensor counts = packed(lengths);
  const int64_t* length = static_cast<const int64_t*>(counts.const_data_ptr());
  const Plan sum = plan(length, batch, k_cache.size(2), kv_heads);
  const int64_t row = cpu::kDecodeRound * ((head_dim - 1) / cpu::kDecodeRound + 1);
  const int64_t sums = sum.tasks * group * row, stats = sum.tasks * group * 2;
  float* memory = static_cast<float*>(scratch((sums + stats + 2 * (batch + 1)) * sizeof(float)));
  int64_t* first_task = reinterpret_cast<int64_t*>(memory + sums + stats);
  first_task[0] = 0;
  for (int64_t b = 0; b < batch; ++b) {
    first_task[b + 1] = first_task[b] + kv_heads * blocks(length[b]);
  }

  const Tensor queries = with_channels(q), k = with_channels(k_cache), v = with_channels(v_cache);
  const auto q_strides = queries.strides(), k_strides = k.strides(), v_strides = v.strides();
  const cpu::DecodeAttentionArgs args = {
      .dtype = dtype,
      .q = queries.const_data_ptr(),
      .q_batch = q_strides[0],
      .q_head = q_strides[1],
      .k = k.const_data_ptr(),
      .k_batch = k_strides[0],
      .k_head = k_strides[1],
      .k_key = k_strides[2],
      .v = v.const_data_ptr(),
      .v_batch = v_strides[0],
      .v_head = v_strides[1],
      .v_key = v_strides[2],
      .lengths = length,
      .first_task = first_task,
      .kv_heads = kv_heads,
      .group = group,
      .head_dim = head_dim,
      .scale = static_cast<float>(scale ? *scale : 1.0 / std::sqrt(static_cast<double>(head_dim))),
      .sums = memory,
      .stats = memory + sums,
      .out = out.mutable_data_ptr(),
  };
  const int64_t bytes = sum.keys * head_dim * (dtype == cpu::DType::f32 ? 8 : 4);
  const int64_t grain = bytes < kSerialBytes ? std::max<int64_t>(sum.tasks, 1) : 1;
  torch::stable::parallel_for(0, sum.tasks, grain,
                              [&](int64_t begin, int64_t end) { tasks(args, begin, end); });
  torch::stable::parallel_for(0, batch * kv_heads, row_grain(group * head_dim),
                              [&](int64_t begin, int64_t end) { pairs(args, begin, end); });
  return out;
}

Tensor decode_attention(Tensor q, Tensor k_cache, Tensor v_cache, Tensor lengths,
                        std::optional<double> scale) {
  return taped(decode_attention_into, q, k_cache, v_cache, lengths, scale);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(flashvl_cpu, m) {
  m.def(
      "decode_attention(Tensor q, Tensor k_cache, Tensor v_cache, Tensor lengths, float? scale)"
      " -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(flashvl_cpu, CPU, m) {
  m.impl("decode_attention", TORCH_BOX(&decode_attention));
}

}  // namespace flashvl
