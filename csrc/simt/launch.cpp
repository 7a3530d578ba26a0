// A launch: its blocks, one after another.

#include "launch.h"

#include "block.h"

namespace flashvl::simt {

Report run(const Kernel& kernel, const Launch& launch, const void* arguments,
           std::vector<Allocation> allocations) {
  Report result;
  report = &result;
  set_allocations(std::move(allocations));
  begin_traffic();
  Block one(launch.block, launch.dynamic_shared_bytes, launch.shared_limit, kernel.name);
  const std::function<void()> body = [&] { kernel.run(arguments); };
  cuda::gridDim = launch.grid;
  for (unsigned z = 0; z < launch.grid.z; ++z) {
    for (unsigned y = 0; y < launch.grid.y; ++y) {
      for (unsigned x = 0; x < launch.grid.x; ++x) {
        one.run({x, y, z}, &body);
        ++result.counters.blocks;
        result.counters.threads += one.count();
      }
    }
  }
  end_traffic();
  report = nullptr;
  block = nullptr;
  return result;
}

}  // namespace flashvl::simt
