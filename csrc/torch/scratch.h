// Working memory of the kernels: kept from call to call, so that a steady caller allocates nothing.
#pragma once

#include <cstddef>
#include <cstdint>

namespace flashvl {

// Bytes of a line of the cache.
constexpr int64_t kLine = 64;

// At least `bytes` bytes, aligned to 64, for the calling thread until its next call of scratch().
// One op call asks once and hands parts to its tasks; what is in there is left from earlier calls.
// Throws std::bad_alloc.
void* scratch(size_t bytes);

// Where the parts of an op's working memory begin, each at a line of its own.
class ScratchParts {
 public:
  int64_t add(int64_t bytes) {
    const int64_t at = size_;
    size_ += (bytes + kLine - 1) / kLine * kLine;
    return at;
  }
  char* allocate() const { return static_cast<char*>(scratch(static_cast<size_t>(size_))); }

 private:
  int64_t size_ = 0;
};

}  // namespace flashvl
