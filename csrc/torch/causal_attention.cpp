// flashvl_cpu::causal_attention: checks, allocation and the split over sequences and KV heads for
// csrc/cpu/causal_attention.cpp.

#include "../cpu/causal_attention.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <array>
#include <optional>
#include <stdexcept>
#include <string>

#include "../cpu/dispatch/dispatch.h"
#include "flash.h"

namespace flashvl {
namespace {

constexpr const char* kOp = "causal_attention";

void check(const Tensor& q, const Tensor& k, const Tensor& v) {
  check_like(kOp, "k_cache", k, q);
  check_like(kOp, "v_cache", v, q);
  if (q.dim() != 4 || k.dim() != 4) {
    throw std::invalid_argument(
        "causal_attention: needs q [B, N, H, D] and k_cache, v_cache [B, Hkv, S, D]");
  }
  if (k.size(1) == 0 || q.size(2) % k.size(1) != 0) {
    throw std::invalid_argument("causal_attention: the KV heads do not divide the query heads");
  }
  const std::array<int64_t, 4> shape = {q.size(0), k.size(1), k.size(2), q.size(3)};
  check_shape(kOp, "k_cache", k, {shape.data(), 4});
  check_shape(kOp, "v_cache", v, {shape.data(), 4});
}

// The longest sequence, and the query-key pairs that count in each head, at most.
struct Extent {
  int64_t longest, pairs;
};

Extent extent(const int64_t* lengths, int64_t batch, int64_t rows, int64_t capacity) {
  Extent sum = {0, 0};
  for (int64_t b = 0; b < batch; ++b) {
    if (lengths[b] < 0 || lengths[b] > capacity) {
      throw std::invalid_argument("causal_attention: lengths[" + std::to_string(b) + "] is " +
                                  std::to_string(lengths[b]) + "; needs 0 to " +
                                  std::to_string(capacity));
    }
    sum.longest = std::max(sum.longest, lengths[b]);
    sum.pairs += std::min(rows, lengths[b]) * lengths[b];
  }
  return sum;
}

Tensor causal_attention(Tensor q, Tensor k_cache, Tensor v_cache, Tensor lengths,
                        std::optional<double> scale) {
  static cpu::CausalAttentionBytes* const bytes =
      FLASHVL_SELECT(cpu::CausalAttentionBytes, causal_attention_bytes);
  static cpu::CausalAttentionTask* const kernel =
      FLASHVL_SELECT(cpu::CausalAttentionTask, causal_attention);
  const cpu::DType dtype = dtype_of(kOp, "q", q);
  check(q, k_cache, v_cache);
  const int64_t batch = q.size(0), rows = q.size(1), heads = q.size(2), head_dim = q.size(3);
  const int64_t kv_heads = k_cache.size(1);
  const Tensor counts = flash_lengths(kOp, lengths, batch);
  const int64_t* length = static_cast<const int64_t*>(counts.const_data_ptr());
  const Extent sum = extent(length, batch, rows, k_cache.size(2));
  Tensor out = empty(q, q.sizes());
  if (out.numel() == 0) return out;

  const FlashSplit split = flash_split(batch * kv_heads, sum.pairs * heads * head_dim,
                                       (rows * (heads / kv_heads) + 31) / 32);
  const Tensor queries = with_channels(q), keys = with_channels(k_cache);
  const Tensor values = with_channels(v_cache);
  const cpu::CausalAttentionArgs args = {
      .flash =
          {
              .dtype = dtype,
              .q = flash_tensor(queries, 0, 1, 2),
              .k = flash_tensor(keys, 0, 2, 1),
              .v = flash_tensor(values, 0, 2, 1),
              .out = out.mutable_data_ptr(),
              .heads = heads,
              .head_dim = head_dim,
              .scale = flash_scale(scale, head_dim),
          },
      .lengths = length,
      .longest = sum.longest,
      .batch = batch,
      .rows = rows,
      .kv_heads = kv_heads,
      .parts = split.parts,
  };
  flash_run(split.tasks, bytes(args), [&](const cpu::FlashTask& task) { kernel(args, task); });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(flashvl_cpu, m) {
  m.def(
      "causal_attention(Tensor q, Tensor k_cache, Tensor v_cache, Tensor lengths, float? scale)"
      " -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(flashvl_cpu, CPU, m) {
  m.impl("causal_attention", TORCH_BOX(&causal_attention));
}

}  // namespace flashvl
