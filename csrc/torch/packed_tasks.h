// What the chains of products and their backward passes do alike: working memory, the weights
// packed by all threads, then the tasks, each over rows of its own.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>

#include "scratch.h"

namespace flashvl {

// Sets args.tasks, packed and memory. plan(args) gives the sizes, for args.tasks; a task has
// `fewest_rows` rows at least. Returns the sizes.
template <class Args, class Plan, class Pack, class Task>
auto pack_and_run(Args& args, int64_t rows, int64_t fewest_rows, Plan* plan, Pack* pack,
                  Task* task) {
  const int64_t threads = torch::stable::get_num_threads();
  args.tasks = std::clamp<int64_t>(rows / fewest_rows, 1, threads);
  const auto sizes = plan(args);
  ScratchParts parts;
  const int64_t packed = parts.add(sizes.packed_bytes);
  const int64_t tasks = parts.add(args.tasks * sizes.task_bytes);
  char* const memory = parts.allocate();
  args.packed = memory + packed;
  args.memory = memory + tasks;
  torch::stable::parallel_for(0, sizes.packed_blocks, 4,
                              [&](int64_t begin, int64_t end) { pack(args, begin, end); });
  torch::stable::parallel_for(0, args.tasks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) task(args, t);
  });
  return sizes;
}

}  // namespace flashvl
