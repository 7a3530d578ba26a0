// Running a kernel on the CPU: the table of kernels a build has, and the launch.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "device.h"
#include "global_memory.h"
#include "report.h"

namespace flashvl::simt {

struct Kernel {
  const char* name;
  size_t argument_bytes;
  std::function<void(const void*)> run;  // one thread; the arguments are one struct
};

template <class Arguments>
Kernel kernel(const char* name, void (*function)(Arguments)) {
  return {name, sizeof(Arguments), [function](const void* arguments) {
            function(*static_cast<const Arguments*>(arguments));
          }};
}

// Defined by the generated source of a build (flashvl_kernels/simt/build.py).
const std::vector<Kernel>& kernels();

struct Launch {
  Dim3 grid, block;
  size_t dynamic_shared_bytes = 0;
  size_t shared_limit = 0;  // of a block on the device
};

Report run(const Kernel& kernel, const Launch& launch, const void* arguments,
           std::vector<Allocation> allocations);

}  // namespace flashvl::simt
