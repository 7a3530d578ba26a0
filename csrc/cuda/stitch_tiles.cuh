// Features of overlapping tiles put together to one canvas (Flash-VL's implicit semantic stitching,
// arXiv 2505.09498).
//
// Bound by bytes: at 12.5 % overlap one value in four is blended, 2 FLOPs each. Every position
// finds its up to four rows by itself; patches that a neighbour owns are not read. A thread has 2
// sixteen-byte loads under way from each row, so up to 8. Sums in fp32, rounded once.
#pragma once

#include "canvas_sources.cuh"
#include "memory.cuh"

namespace flashvl::cuda {

// Vectors of a row that a thread takes: 256 threads have 8 KiB under way.
constexpr int kStitchVectors = 2;
// Blocks a multiprocessor holds at least: 32 KiB under way, where an H100 needs 18.
constexpr int kStitchBlocks = 4;

template <class T>
struct StitchTilesArgs {
  Global<const T> x;
  Global<T> y;  // [positions, channels], contiguous
  Canvas canvas;
  int64_t positions, channels;
};

// One position that a single tile covers: kStitchVectors vectors, `step` channels apart.
template <class T, int kVec>
__device__ __forceinline__ void copy_position(Global<const T> from, Global<T> to, int64_t first,
                                              int64_t step, int64_t channels) {
  Vec<T, kVec> at[kStitchVectors];
#pragma unroll
  for (int v = 0; v < kStitchVectors; ++v) {
    if (first + v * step < channels) at[v] = from.template load_once<kVec>(first + v * step);
  }
#pragma unroll
  for (int v = 0; v < kStitchVectors; ++v) {
    if (first + v * step < channels) to.store(first + v * step, at[v]);
  }
}

// The channels from c on of a position that two or four tiles cover; x points at the upper left
// one.
template <class T, int kVec>
__device__ __forceinline__ Vec<T, kVec> blended(Global<const T> x, const Canvas& canvas,
                                                const PositionSources& from, int64_t c) {
  Vec<T, kVec> part[2][2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      if (from.has(i, j)) {
        part[i][j] = x.template load_once<kVec>(i * to_lower(canvas) + j * to_right(canvas) + c);
      }
    }
  }
  Vec<T, kVec> y;
#pragma unroll
  for (int e = 0; e < kVec; ++e) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        // No source is not a source of share 0: infinity times that is NaN.
        if (from.has(i, j)) sum = fmaf(to_float(part[i][j][e]), from.share(i, j), sum);
      }
    }
    y[e] = from_float<T>(sum);
  }
  return y;
}

// A copy of rows needs no type of feature: without kBlend T is a word of any type.
// blockDim is (threads along a row, positions a block); the grid covers positions in x and a row's
// parts in y.
template <class T, int kVec, bool kBlend>
__global__ void __launch_bounds__(256, kStitchBlocks) stitch_tiles_kernel(StitchTilesArgs<T> args) {
  const int64_t step = static_cast<int64_t>(blockDim.x) * kVec;
  const int64_t first = blockIdx.y * kStitchVectors * step + threadIdx.x * kVec;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.y;
  for (int64_t position = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
       position < args.positions; position += stride) {
    const PositionSources from = sources_at(args.canvas, position);
    const Global<const T> x = args.x + from.offset;
    const Global<T> to = args.y + position * args.channels;
    if (!kBlend || !from.several()) {
      copy_position<T, kVec>(x, to, first, step, args.channels);
      continue;
    }
    if constexpr (kBlend) {
#pragma unroll 1
      for (int v = 0; v < kStitchVectors; ++v) {
        const int64_t c = first + v * step;
        if (c < args.channels) to.store(c, blended<T, kVec>(x, args.canvas, from, c));
      }
    }
  }
}

}  // namespace flashvl::cuda
