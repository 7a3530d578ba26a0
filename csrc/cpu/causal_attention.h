// What the binding hands to the causal_attention kernels.
#pragma once

#include "matrix/flash_args.h"

namespace flashvl::cpu {

// q is [batch, rows, heads, D]; k and v are caches [batch, kv_heads, S, D], `token` their stride
// between positions.
struct CausalAttentionArgs {
  FlashArgs flash;
  const int64_t* lengths;  // [batch]: keys of each sequence that count
  int64_t longest;         // of the lengths
  int64_t batch;
  int64_t rows;
  int64_t kv_heads;
  int64_t parts;  // into which the queries of a sequence and KV head are split
};

// Bytes of working memory that a task needs.
using CausalAttentionBytes = int64_t(const CausalAttentionArgs& args);
FLASHVL_DECLARE_KERNEL(CausalAttentionBytes, causal_attention_bytes)

using CausalAttentionTask = void(const CausalAttentionArgs& args, const FlashTask& task);
FLASHVL_DECLARE_KERNEL(CausalAttentionTask, causal_attention)

}  // namespace flashvl::cpu
