// The allocations a launch may touch.
#pragma once

#include <string>
#include <vector>

namespace flashvl::simt {

struct Allocation {
  std::string name;
  uintptr_t begin;
  size_t bytes;
  bool writable;
};

void set_allocations(std::vector<Allocation> all);

}  // namespace flashvl::simt
