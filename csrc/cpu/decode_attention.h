// What the binding hands to the decode_attention kernels.
#pragma once

#include <cstdint>

#include "levels.h"
#include "types.h"

namespace flashvl::cpu {

// Keys of one task. For the 1024 head_dim bytes of its bf16 keys and values a task leaves head_dim
// + 2 floats a query head, 2.4 % of them at 6 heads; fewer keys would leave more, and more keys
// would leave threads idle at the lengths of a chat (2 KV heads, 600 keys: 6 tasks). The size does
// not depend on the number of threads, and so neither does the result.
inline constexpr int64_t kDecodeKeys = 256;

// Floats of a head's row of partial sums: head_dim rounded up to the widest vector.
inline constexpr int64_t kDecodeRound = 16;

// Strides count elements; channels are contiguous. out is contiguous [batch, heads, head_dim].
struct DecodeAttentionArgs {
  DType dtype;
  const void* q;
  int64_t q_batch, q_head;
  const void* k;
  int64_t k_batch, k_head, k_key;
  const void* v;
  int64_t v_batch, v_head, v_key;
  const int64_t* lengths;     // [batch], each within the cache
  const int64_t* first_task;  // [batch + 1]: tasks of earlier sequences; kv_heads tasks for each
                              // kDecodeKeys keys, those of a KV head one after the other
  int64_t kv_heads;
  int64_t group;  // query heads of a KV head
  int64_t head_dim;
  float scale;
  float* sums;   // [tasks, group, head_dim rounded up], for the kernels to use
  float* stats;  // [tasks, group, 2]
  void* out;
};

// Tasks [begin, end): attention over kDecodeKeys keys for the query heads of one KV head.
using DecodeAttentionTasks = void(const DecodeAttentionArgs& args, int64_t begin, int64_t end);
FLASHVL_DECLARE_KERNEL(DecodeAttentionTasks, decode_attention_tasks)

// Pairs (sequence, KV head) [begin, end): puts the tasks' results together, in order.
using DecodeAttentionPairs = void(const DecodeAttentionArgs& args, int64_t begin, int64_t end);
FLASHVL_DECLARE_KERNEL(DecodeAttentionPairs, decode_attention_pairs)

}  // namespace flashvl::cpu
