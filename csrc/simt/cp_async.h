// Host models of ptx/cp_async.cuh.
#pragma once

#include "memory.h"

namespace flashvl::cuda {

template <class T, class S>
void cp_async_16(Shared<T> to, Global<S> from, bool fill = true, FLASHVL_AT) {
  simt::copy_async(to.address, from.address, 16, fill, at);
}

template <int kBytes, class T, class S>
void cp_async_small(Shared<T> to, Global<S> from, bool fill = true, FLASHVL_AT) {
  static_assert(kBytes == 4 || kBytes == 8);
  simt::copy_async(to.address, from.address, kBytes, fill, at);
}

inline void cp_async_commit() { simt::copy_async_commit(); }

template <int kOutstanding>
void cp_async_wait() {
  simt::copy_async_wait(kOutstanding);
}

}  // namespace flashvl::cuda
