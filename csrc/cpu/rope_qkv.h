// What the binding hands to the rope_qkv kernels.
#pragma once

#include <cstdint>

#include "levels.h"
#include "types.h"

namespace flashvl::cpu {

// Where keys or values go: head h of row n to data + batch * (slot / capacity) + head * h
// + token * (slot % capacity), channels `channel` apart. All strides count elements.
struct RopeTarget {
  void* data;
  int64_t batch;
  int64_t head;
  int64_t token;
  int64_t channel;
};

struct RopeQkvArgs {
  DType dtype;
  DType table_dtype;  // of cos and sin: float32 or dtype
  const void* qkv;    // rows of all query heads, all key heads, all value heads
  int64_t qkv_stride;
  const void* cos;
  int64_t cos_stride;
  const void* sin;
  int64_t sin_stride;
  const int64_t* positions;  // contiguous; null: row n is at position n
  const int64_t* slots;      // contiguous; null: row n goes to slot n of one sequence
  int64_t capacity;          // positions of a sequence of the target
  int64_t heads;
  int64_t kv_heads;
  int64_t half;  // of the head dimension
  void* q;       // [rows, heads, 2 half], contiguous
  RopeTarget k;
  RopeTarget v;
};

// Computes rows [begin, end). A row with a slot below 0 gives its queries only.
using RopeQkvRows = void(const RopeQkvArgs& args, int64_t begin, int64_t end);
FLASHVL_DECLARE_KERNEL(RopeQkvRows, rope_qkv)

}  // namespace flashvl::cpu
