// What the binding hands to the attention_backward kernels.
#pragma once

#include <cstdint>

#include "levels.h"
#include "types.h"

namespace flashvl::cpu {

// Element (batch, token, head, channel) at data + batch * .. + token * .. + head * .. + channel.
struct AttentionHeads {
  const float* data;
  int64_t batch, token, head;
};

struct AttentionGradient {
  float* data;
  int64_t batch, token, head;
};

// Tasks are pairs of a sequence and a KV head. Without lengths every query sees every key; with
// them the queries are aligned to the right of that many keys and see none behind their own.
struct AttentionBackwardArgs {
  int64_t batch;
  int64_t queries;
  int64_t keys;
  int64_t heads;
  int64_t kv_heads;
  int64_t head_dim;
  float scale;
  bool bf16;               // numbers may be rounded to bf16 before they are multiplied
  const int64_t* lengths;  // [batch], or null
  AttentionHeads q, k, v, dout;
  AttentionGradient dq, dk, dv;
};

// Bytes of working memory that a thread needs, aligned to 64.
using AttentionBackwardBytes = int64_t(const AttentionBackwardArgs& args);
FLASHVL_DECLARE_KERNEL(AttentionBackwardBytes, attention_backward_bytes)

using AttentionBackwardTask = void(const AttentionBackwardArgs& args, int64_t task, char* memory);
FLASHVL_DECLARE_KERNEL(AttentionBackwardTask, attention_backward)

}  // namespace flashvl::cpu
