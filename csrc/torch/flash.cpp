// See flash.h.

#include "flash.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

#include "scratch.h"

namespace flashvl {
namespace {

// Multiply-adds below which one thread is done before a second one has woken up: some 10 us.
constexpr int64_t kSerialWork = int64_t{1} << 19;

}  // namespace

Tensor with_channels(const Tensor& tensor) {
  const int64_t last = tensor.dim() - 1;
  if (tensor.size(last) <= 1 || tensor.stride(last) == 1) return tensor;
  return torch::stable::contiguous(tensor);
}

cpu::FlashTensor flash_tensor(const Tensor& tensor, int64_t outer, int64_t token, int64_t head) {
  return {
      .data = tensor.const_data_ptr(),
      .outer = outer < 0 ? 0 : tensor.stride(outer),
      .token = tensor.stride(token),
      .head = tensor.stride(head),
  };
}

float flash_scale(std::optional<double> scale, int64_t head_dim) {
  return static_cast<float>(scale ? *scale : 1.0 / std::sqrt(static_cast<double>(head_dim)));
}

Tensor flash_lengths(const char* op, const Tensor& lengths, int64_t count) {
  if (!lengths.is_cpu() || lengths.scalar_type() != torch::headeronly::ScalarType::Long) {
    throw std::invalid_argument(std::string(op) + ": lengths must be int64 on the CPU");
  }
  check_shape(op, "lengths", lengths, {&count, 1});
  return torch::stable::contiguous(lengths);
}

// Items that the tasks cannot share out evenly are split so that a task has about four parts:
// packing a head's keys and values again for each part costs some 2 % of the work on a whole one.
FlashSplit flash_split(int64_t items, int64_t scores, int64_t most_parts) {
  const int64_t threads = torch::stable::get_num_threads();
  if (threads <= 1 || scores < kSerialWork || items == 0) return {1, 1};
  if (items % threads == 0) return {threads, 1};
  const int64_t parts =
      std::clamp<int64_t>((4 * threads + items - 1) / items, 1, std::max<int64_t>(most_parts, 1));
  return {std::min(threads, items * parts), parts};
}

void flash_run(int64_t tasks, int64_t bytes,
               const std::function<void(const cpu::FlashTask&)>& task) {
  char* memory = static_cast<char*>(scratch(static_cast<size_t>(tasks * bytes)));
  torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      task({.task = t, .tasks = tasks, .memory = memory + t * bytes});
    }
  });
}

}  // namespace flashvl
