// Features of overlapping tiles put together to one canvas (Flash-VL's implicit semantic stitching,
// arXiv 2505.09498).
//
// Bound by bytes: at 12.5 % overlap one value in four is blended, 2 FLOPs each. Every position
// finds its up to four rows by itself; patches that a neighbour owns are not read. A thread has 2
// sixteen-byte loads of a copied row under way, or one from each of 2 or 4. Sums in fp32, rounded
// once.
#pragma once

#include "copy_row.cuh"
#include "token_canvas.cuh"

namespace flashvl::cuda {

// Blocks a multiprocessor holds at least: 256 threads have 8 KiB under way each, together 32 KiB,
// where an H100 needs 18.
constexpr int kStitchBlocks = 4;

template <class T>
struct StitchTilesArgs {
  Global<const T> x;
  Global<T> y;  // [positions, channels], contiguous
  TokenCanvas canvas;
  int64_t positions, channels;
};

// A copy of rows needs no type of feature: without kBlend T is a word of any type.
// blockDim is (threads along a row, positions a block); the grid covers positions in x and a row's
// parts in y.
template <class T, int kVec, bool kBlend>
__global__ void __launch_bounds__(256, kStitchBlocks) stitch_tiles_kernel(StitchTilesArgs<T> args) {
  const RowPart<kVec> part;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.y;
  const TileAxis &down = args.canvas.tiling.down, &across = args.canvas.tiling.across;
  const int area = down.length * across.length;
  for (int64_t position = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
       position < args.positions; position += stride) {
    const int64_t image = position / area;
    const int place = static_cast<int>(position - image * area);
    const int row = place / across.length, col = place - row * across.length;
    const PositionSources from = sources_at(args.canvas, image, row, col);
    const Global<T> to = args.y + position * args.channels;
    if (!kBlend || !from.several()) {
      copy_row(part, args.x + from.offset, to, args.channels);
      continue;
    }
    if constexpr (kBlend) {
#pragma unroll 1
      for (int v = 0; v < kRowVectors; ++v) {
        const int64_t c = part.at(v);
        if (c >= args.channels) break;
        const Vec<float, kVec> sum = blended_at<kVec>(args.x, args.canvas, from, c);
        Vec<T, kVec> y;
#pragma unroll
        for (int e = 0; e < kVec; ++e) y[e] = from_float<T>(sum[e]);
        to.store(c, y);
      }
    }
  }
}

}  // namespace flashvl::cuda
