// See precision.h. The stable ABI has no way to read PyTorch's setting from here.

#include "precision.h"

#include <torch/csrc/stable/library.h>

#include <atomic>

#include "../cpu/dispatch/dispatch.h"
#include "../cpu/precision.h"

namespace flashvl {
namespace {

std::atomic<bool> allowed_now{false};

bool has_bf16_products() {
  static cpu::HasBF16Product* const kernel = FLASHVL_SELECT(cpu::HasBF16Product, has_bf16_product);
  return kernel != nullptr && kernel();
}

void allow_bf16_products(bool allowed) { allowed_now = allowed; }

}  // namespace

bool products_in_bf16() { return allowed_now; }

STABLE_TORCH_LIBRARY_FRAGMENT(flashvl_cpu, m) {
  m.def("has_bf16_products() -> bool");
  m.def("allow_bf16_products(bool allowed) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(flashvl_cpu, CompositeExplicitAutograd, m) {
  m.impl("has_bf16_products", TORCH_BOX(&has_bf16_products));
  m.impl("allow_bf16_products", TORCH_BOX(&allow_bf16_products));
}

}  // namespace flashvl
