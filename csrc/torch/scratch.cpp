// See scratch.h.

#include "scratch.h"

#include <cstdlib>
#include <memory>
#include <new>

#include "huge_pages.h"

namespace flashvl {
namespace {

struct Free {
  void operator()(void* p) const { std::free(p); }
};

constexpr size_t kRound = size_t{1}
                          << 16;  // growing by a little each call would allocate each call

}  // namespace

void* scratch(size_t bytes) {
  thread_local std::unique_ptr<void, Free> memory;
  thread_local size_t size = 0;
  if (bytes > size) {
    const size_t wanted = (bytes + kRound - 1) / kRound * kRound;
    memory.reset();
    size = 0;
    memory.reset(std::aligned_alloc(64, wanted));
    if (memory == nullptr) throw std::bad_alloc();
    size = wanted;
    advise_huge_pages(memory.get(), wanted);
  }
  return memory.get();
}

}  // namespace flashvl
