// flashvl_simt: the launches of one build, for Python (flashvl_kernels/simt).

#include <pybind11/functional.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <stdexcept>
#include <tuple>

#include "launch.h"

namespace py = pybind11;

namespace flashvl::simt {
namespace {

const Kernel& named(const std::string& name) {
  for (const Kernel& kernel : kernels()) {
    if (name == kernel.name) return kernel;
  }
  throw std::invalid_argument("simt: this build has no kernel " + name +
                              "; add it to the instances of its plan");
}

py::dict counters_of(const Counters& c) {
  py::dict d;
#define FLASHVL_COUNTER(name) d[#name] = c.name
  FLASHVL_COUNTER(global_reads);
  FLASHVL_COUNTER(global_read_bytes);
  FLASHVL_COUNTER(read_sectors);
  FLASHVL_COUNTER(unique_read_sectors);
  FLASHVL_COUNTER(global_writes);
  FLASHVL_COUNTER(global_write_bytes);
  FLASHVL_COUNTER(write_sectors);
  FLASHVL_COUNTER(unique_write_sectors);
  FLASHVL_COUNTER(global_atomics);
  FLASHVL_COUNTER(wide_accesses);
  FLASHVL_COUNTER(shared_reads);
  FLASHVL_COUNTER(shared_writes);
  FLASHVL_COUNTER(shared_atomics);
  FLASHVL_COUNTER(shared_wavefronts);
  FLASHVL_COUNTER(bank_conflicts);
  FLASHVL_COUNTER(shared_bytes);
  FLASHVL_COUNTER(barriers);
  FLASHVL_COUNTER(warp_syncs);
  FLASHVL_COUNTER(shuffles);
  FLASHVL_COUNTER(votes);
  FLASHVL_COUNTER(cp_async);
  FLASHVL_COUNTER(ldmatrix);
  FLASHVL_COUNTER(mma);
  FLASHVL_COUNTER(blocks);
  FLASHVL_COUNTER(threads);
#undef FLASHVL_COUNTER
  return d;
}

using Size3 = std::array<unsigned, 3>;
using Tensor = std::tuple<std::string, uintptr_t, size_t, bool>;

py::tuple launch(const std::string& name, Size3 grid, Size3 block, size_t dynamic_bytes,
                 size_t shared_limit, const py::bytes& arguments,
                 const std::vector<Tensor>& tensors) {
  const Kernel& kernel = named(name);
  const std::string bytes = arguments;
  if (bytes.size() != kernel.argument_bytes) {
    throw std::invalid_argument("simt: " + name + " takes a struct of " +
                                std::to_string(kernel.argument_bytes) + " bytes, got " +
                                std::to_string(bytes.size()) +
                                "; make the ctypes.Structure of its plan match");
  }
  std::vector<Allocation> allocations;
  for (const auto& [tensor, begin, size, writable] : tensors) {
    allocations.push_back({tensor, begin, size, writable});
  }
  const Launch how{
      {grid[0], grid[1], grid[2]}, {block[0], block[1], block[2]}, dynamic_bytes, shared_limit};
  const Report found = run(kernel, how, bytes.data(), std::move(allocations));
  py::list findings;
  for (const Finding& f : found.findings) {
    findings.append(py::make_tuple(f.kind, f.where, f.text, f.count));
  }
  return py::make_tuple(counters_of(found.counters), findings);
}

}  // namespace

PYBIND11_MODULE(flashvl_simt, m) {
  m.def("launch", &launch);
  m.def("kernels", [] {
    std::vector<std::string> names;
    for (const Kernel& kernel : kernels()) names.push_back(kernel.name);
    return names;
  });
}

}  // namespace flashvl::simt
