// What the bindings of the attention ops hand over alike.
#pragma once

#include <cstdint>

#include "../levels.h"
#include "../types.h"

namespace flashvl::cpu {

// A tensor of heads; strides in elements, the head dimension contiguous. outer: the stride of the
// tile, or of the sequence.
struct FlashTensor {
  const void* data;
  int64_t outer;
  int64_t token;
  int64_t head;
};

// `out` is contiguous: [rows, heads, head_dim].
struct FlashArgs {
  DType dtype;
  FlashTensor q;
  FlashTensor k;
  FlashTensor v;
  void* out;
  int64_t heads;
  int64_t head_dim;
  float scale;
};

// Task `task` of `tasks`, with working memory of its own, aligned to 64 bytes.
struct FlashTask {
  int64_t task;
  int64_t tasks;
  void* memory;
};

}  // namespace flashvl::cpu
