// Which of the two kinds of flash attention a dtype takes, and its shape for a head dimension.
#pragma once

#include "flash_fma.cuh"
#include "flash_mma.cuh"

namespace flashvl::cuda {

// kDim is 64, 80, 128 or 256 in 16 bits, 64, 96, 128 or 256 in fp32; flash_plan.py mirrors this.
// 16 bits: 128 rows a block up to 80 channels, where two tiles a warp and their scores fit its
// registers and each key read from shared memory is used twice; then 64, then 32. Keys at a time
// are as many as spill nowhere: 64 at 64 channels spill on sm_80, and 32 at 256.
template <int kDim>
constexpr int kFlashKeys = kDim <= 80    ? 32
                           : kDim <= 128 ? 64
                                         : 16;

template <class T, int kDim>
struct FlashOf {
  using type = FlashMma<T, kDim, kDim <= 128 ? 4 : 2, kDim <= 80 ? 2 : 1, kFlashKeys<kDim>>;
};
template <int kDim>
struct FlashOf<float, kDim> {
  using type = FlashFma<kDim, kDim <= 96 ? 4 : kDim <= 128 ? 2 : 1, kDim <= 128 ? 32 : 16>;
};

template <class T, int kDim>
using Flash = typename FlashOf<T, kDim>::type;

// A block's only team, in the launch's dynamic shared memory.
template <class T, int kDim>
__device__ __forceinline__ Flash<T, kDim> flash_of_block() {
  const Shared<T> memory = dynamic_shared<T>();
  return {memory, memory + Flash<T, kDim>::kQueryElements, static_cast<int>(threadIdx.x)};
}

// Where `sum` is 0 nothing was seen, or only scores of -inf: the row is 0, as the reference has it.
__device__ __forceinline__ float softmax_scale(float sum) {
  return sum == 0.0f ? 0.0f : 1.0f / sum;
}

}  // namespace flashvl::cuda
