// The functions about the extension itself, for extension.py and `flashvl-kernels doctor`.

#include <torch/csrc/stable/library.h>

#include <string>

#include "../cpu/dispatch/dispatch.h"

namespace flashvl {
namespace {

std::string level() { return cpu::active_level_name(); }
std::string available_levels() { return cpu::available_levels(); }
std::string features() { return cpu::cpu_features(); }

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(flashvl_cpu, m) {
  m.def("level() -> str");
  m.def("available_levels() -> str");
  m.def("features() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(flashvl_cpu, CompositeExplicitAutograd, m) {
  m.impl("level", TORCH_BOX(&level));
  m.impl("available_levels", TORCH_BOX(&available_levels));
  m.impl("features", TORCH_BOX(&features));
}

}  // namespace flashvl
