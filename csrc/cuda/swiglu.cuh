// SwiGLU over a packed last axis: the first half of a row gates the second (Shazeer, arXiv
// 2002.05202).
//
// Bound by bytes: 3 halves a row, 5 FLOPs an element of the result. One pass; every thread has four
// 16-byte loads under way. Rounding follows Hugging Face's Qwen2: silu is rounded to the dtype
// before it multiplies.
#pragma once

#include "memory.cuh"
#include "rows.cuh"

namespace flashvl::cuda {

// A thread takes this many vectors of a row: two loads each hide the latency of one another.
constexpr int kSwigluVectors = 2;

template <class T>
struct SwigluArgs {
  Global<const T> gate_up;  // rows of gates, then as many values
  Global<T> y;              // contiguous rows of `half`
  Rows gate_up_rows;
  int64_t rows, half;
};

// The exponential is the accurate one: fp32 results may err by as much as PyTorch's, not more.
template <class T>
__device__ __forceinline__ T gated(T gate, T up) {
  const float g = to_float(gate);
  return from_float<T>(round_to<T>(g / (1.0f + expf(-g))) * to_float(up));
}

// blockDim is (threads along a row, rows a block); the grid covers a row in x and rows in y.
template <class T, int kVec>
__global__ void __launch_bounds__(256) swiglu_kernel(SwigluArgs<T> args) {
  const int64_t first =
      (static_cast<int64_t>(blockIdx.x) * kSwigluVectors * blockDim.x + threadIdx.x) * kVec;
  const int64_t step = static_cast<int64_t>(blockDim.x) * kVec;
  const int64_t rows_a_step = static_cast<int64_t>(gridDim.y) * blockDim.y;
  for (int64_t row = static_cast<int64_t>(blockIdx.y) * blockDim.y + threadIdx.y; row < args.rows;
       row += rows_a_step) {
    const Global<const T> gates = args.gate_up + args.gate_up_rows.offset(row);
    const Global<const T> ups = gates + args.half;
    Vec<T, kVec> gate[kSwigluVectors], up[kSwigluVectors];
#pragma unroll
    for (int v = 0; v < kSwigluVectors; ++v) {
      if (first + v * step < args.half) {
        gate[v] = gates.template load_once<kVec>(first + v * step);
        up[v] = ups.template load_once<kVec>(first + v * step);
      }
    }
#pragma unroll
    for (int v = 0; v < kSwigluVectors; ++v) {
      if (first + v * step < args.half) {
#pragma unroll
        for (int i = 0; i < kVec; ++i) gate[v][i] = gated(gate[v][i], up[v][i]);
        args.y.store(row * args.half + first + v * step, gate[v]);
      }
    }
  }
}

}  // namespace flashvl::cuda
