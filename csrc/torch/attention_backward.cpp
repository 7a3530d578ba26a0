// flashvl_cpu::attention_backward: checks, allocation and the split over threads for
// csrc/cpu/attention_backward.cpp.

#include "../cpu/attention_backward.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>

#include "../cpu/dispatch/dispatch.h"
#include "precision.h"
#include "scratch.h"
#include "tensors.h"

namespace flashvl {
namespace {

constexpr const char* kOp = "attention_backward";

// float32 [B, tokens, heads, D] with contiguous channels; copied where they are not.
Tensor heads_of(const char* name, const Tensor& tensor, const Tensor& like, int64_t tokens,
                int64_t heads) {
  if (dtype_of(kOp, name, tensor) != cpu::DType::f32) {
    throw std::invalid_argument(std::string(kOp) + ": " + name + " needs float32");
  }
  const std::array<int64_t, 4> shape = {like.size(0), tokens, heads, like.size(3)};
  check_shape(kOp, name, tensor, {shape.data(), 4});
  return tensor.stride(3) == 1 ? tensor : packed(tensor);
}

cpu::AttentionHeads at(const Tensor& t) {
  return {static_cast<const float*>(t.const_data_ptr()), t.stride(0), t.stride(1), t.stride(2)};
}

cpu::AttentionGradient into(const Tensor& t) {
  return {static_cast<float*>(t.mutable_data_ptr()), t.stride(0), t.stride(1), t.stride(2)};
}

// dq, dk, dv, contiguous: all [B, tokens, heads, D], as are the arguments.
std::tuple<Tensor, Tensor, Tensor> attention_backward(Tensor dout, Tensor q, Tensor k, Tensor v,
                                                      std::optional<Tensor> lengths, double scale) {
  static cpu::AttentionBackwardBytes* const bytes =
      FLASHVL_SELECT(cpu::AttentionBackwardBytes, attention_backward_bytes);
  static cpu::AttentionBackwardTask* const kernel =
      FLASHVL_SELECT(cpu::AttentionBackwardTask, attention_backward);
  if (kernel == nullptr) throw std::runtime_error("attention_backward: needs level avx2");
  if (q.dim() != 4 || k.dim() != 4) {
    throw std::invalid_argument("attention_backward: q and k need [B, tokens, heads, D]");
  }
  const int64_t queries = q.size(1), heads = q.size(2), keys = k.size(1), kv_heads = k.size(2);
  if (kv_heads == 0 || heads % kv_heads != 0) {
    throw std::invalid_argument("attention_backward: KV heads do not divide the heads");
  }
  q = heads_of("q", q, q, queries, heads);
  dout = heads_of("dout", dout, q, queries, heads);
  k = heads_of("k", k, q, keys, kv_heads);
  v = heads_of("v", v, q, keys, kv_heads);
  const int64_t batch = q.size(0);
  const int64_t* counts = nullptr;
  if (lengths) {
    check_index(kOp, "lengths", *lengths);
    check_shape(kOp, "lengths", *lengths, {&batch, 1});
    lengths = packed(*lengths);
    counts = static_cast<const int64_t*>(lengths->const_data_ptr());
    for (int64_t b = 0; b < batch; ++b) {
      if (counts[b] < 0 || counts[b] > keys) {
        throw std::invalid_argument("attention_backward: a length is outside of the keys");
      }
    }
  }
  Tensor dq = empty(q, q.sizes()), dk = empty(k, k.sizes()), dv = empty(k, k.sizes());
  const cpu::AttentionBackwardArgs args = {
      .batch = batch,
      .queries = queries,
      .keys = keys,
      .heads = heads,
      .kv_heads = kv_heads,
      .head_dim = q.size(3),
      .scale = static_cast<float>(scale),
      .bf16 = products_in_bf16(),
      .lengths = counts,
      .q = at(q),
      .k = at(k),
      .v = at(v),
      .dout = at(dout),
      .dq = into(dq),
      .dk = into(dk),
      .dv = into(dv),
  };
  const int64_t pairs = batch * kv_heads;
  if (pairs == 0) return {dq, dk, dv};
  const int64_t parts = std::clamp<int64_t>(torch::stable::get_num_threads(), 1, pairs);
  const int64_t each = bytes(args);
  char* const memory = static_cast<char*>(scratch(static_cast<size_t>(parts * each)));
  torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      const int64_t last = pairs * (part + 1) / parts;
      for (int64_t pair = pairs * part / parts; pair < last; ++pair) {
        kernel(args, pair, memory + part * each);
      }
    }
  });
  return {dq, dk, dv};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(flashvl_cpu, m) {
  m.def(
      "attention_backward(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor? lengths, float scale)"
      " -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(flashvl_cpu, CPU, m) {
  m.impl("attention_backward", TORCH_BOX(&attention_backward));
}

}  // namespace flashvl
