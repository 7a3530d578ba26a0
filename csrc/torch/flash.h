// What the bindings of the three prefill attention ops share; see csrc/cpu/matrix/flash.h.
#pragma once

#include <functional>
#include <optional>

#include "../cpu/matrix/flash_args.h"
#include "tensors.h"

namespace flashvl {

// The tensor, or a copy of it whose last axis is contiguous.
Tensor with_channels(const Tensor& tensor);

// `tensor` with its strides along the axes given; -1: there is no such axis.
cpu::FlashTensor flash_tensor(const Tensor& tensor, int64_t outer, int64_t token, int64_t head);

// The scale in force: head_dim ** -0.5 where it was left out.
float flash_scale(std::optional<double> scale, int64_t head_dim);

// int64 values of a CPU tensor [count], contiguous. Throws std::invalid_argument.
Tensor flash_lengths(const char* op, const Tensor& lengths, int64_t count);

// How many tasks there should be, and into how many parts each item has to be split for them.
struct FlashSplit {
  int64_t tasks;
  int64_t parts;
};

// scores: query-key pairs times head_dim over all items; most_parts: beyond which parts are empty.
FlashSplit flash_split(int64_t items, int64_t scores, int64_t most_parts);

// Runs the tasks, each with `bytes` of working memory.
void flash_run(int64_t tasks, int64_t bytes,
               const std::function<void(const cpu::FlashTask&)>& task);

}  // namespace flashvl
