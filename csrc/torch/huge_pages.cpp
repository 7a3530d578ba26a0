// See huge_pages.h, and flashvl_cpu::advise_huge_pages for a tensor's memory (packing.py).

#include "huge_pages.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace flashvl {

void advise_huge_pages(void* p, size_t bytes) {
#if defined(__linux__)
  constexpr uintptr_t kPage = uintptr_t{2} << 20;
  const uintptr_t first = (reinterpret_cast<uintptr_t>(p) + kPage - 1) / kPage * kPage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(p) + bytes) / kPage * kPage;
  if (end > first) madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);
#else
  (void)p, (void)bytes;
#endif
}

namespace {

void advise(torch::stable::Tensor tensor) {
  if (!tensor.is_cpu() || !tensor.is_contiguous()) return;
  advise_huge_pages(tensor.mutable_data_ptr(),
                    static_cast<size_t>(tensor.numel()) * tensor.element_size());
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(flashvl_cpu, m) { m.def("advise_huge_pages(Tensor(a!) x) -> ()"); }

STABLE_TORCH_LIBRARY_IMPL(flashvl_cpu, CPU, m) { m.impl("advise_huge_pages", TORCH_BOX(&advise)); }

}  // namespace flashvl
