// Image rows in place of the sentinels' embeddings, in one launch.
//
// Bound by bytes: each row is copied once, from one place or the other, 2 sixteen-byte loads a
// thread under way. Which image row a sentinel takes is the number of sentinels before it. A block
// with sentinels of its own counts those before its rows, 8 bytes a token out of the L2 cache,
// instead of a launch that ranks them first. An id is compared, never used as an address.
#pragma once

#include "copy_row.cuh"
#include "ptx/popc.cuh"
#include "ptx/sync.cuh"
#include "rows.cuh"

namespace flashvl::cuda {

// SENTINELS of flashvl_kernels/ops/merge_image_tokens.py: an image's first token, and its others.
constexpr int64_t kFirstOfImage = -200, kRestOfImage = -201;

constexpr int kMergeThreads = 256, kMergeWarps = kMergeThreads / kWarp;
// Blocks a multiprocessor holds at least: 48 KiB under way, where a B200 needs 43.
constexpr int kMergeBlocks = 6;
// Ids that a thread has under way where it counts.
constexpr int kMergeCounted = 4;

// T is a word: a copy looks at no value.
template <class T>
struct MergeImageTokensArgs {
  Global<const T> embeds;
  Global<const T> images;
  Global<const int64_t> ids;
  Global<T> y;  // contiguous rows of `columns`
  Rows embeds_rows;
  int64_t image_stride, ids_stride;
  int64_t rows, columns, image_rows, rows_a_block;
};

__device__ __forceinline__ bool is_sentinel(int64_t id) {
  return id == kFirstOfImage || id == kRestOfImage;
}

__device__ __forceinline__ int merge_thread() {
  return static_cast<int>(threadIdx.y * blockDim.x + threadIdx.x);
}
__device__ __forceinline__ int merge_threads() { return static_cast<int>(blockDim.x * blockDim.y); }

// Counts of the warps, added up: of those before `warp`.
__device__ __forceinline__ int64_t counted_before(Shared<int> of_warp, int warp) {
  int64_t sum = 0;
  for (int w = 0; w < warp; ++w) sum += of_warp.load(w);
  return sum;
}

// Sentinels among the ids before `end`, for every thread of the block; holds a barrier.
__device__ __forceinline__ int64_t sentinels_before(Global<const int64_t> ids, int64_t stride,
                                                    int64_t end) {
  FLASHVL_SHARED(int, of_warp, kMergeWarps);
  const int threads = merge_threads();
  int count = 0;
#pragma unroll 1
  for (int64_t i = merge_thread(); i < end; i += kMergeCounted * threads) {
    int64_t id[kMergeCounted];
#pragma unroll
    for (int u = 0; u < kMergeCounted; ++u) {
      id[u] = i + u * threads < end ? ids.load((i + u * threads) * stride) : 0;
    }
#pragma unroll
    for (int u = 0; u < kMergeCounted; ++u) count += is_sentinel(id[u]);
  }
#pragma unroll
  for (int by = kWarp / 2; by > 0; by /= 2) count += shuffle_xor(count, by);
  if (lane() == 0) of_warp.store(merge_thread() / kWarp, count);
  sync_block();
  return counted_before(of_warp, threads / kWarp);
}

// The image row of each row from `start` on, one a thread: -1 where it keeps its embedding.
// `before` counts the sentinels before `start`; below 0 it is not known, for none was needed yet.
template <class T>
__device__ __forceinline__ void rank_rows(const MergeImageTokensArgs<T>& args, int64_t start,
                                          int64_t end, Shared<int64_t> ranks, int64_t& before) {
  FLASHVL_SHARED(int, of_warp, kMergeWarps);
  const int thread = merge_thread(), warp = thread / kWarp;
  const int64_t row = start + thread;
  const bool mine = row < end && is_sentinel(args.ids.load(row * args.ids_stride));
  const uint32_t votes = ballot(mine);
  if (lane() == 0) of_warp.store(warp, count_bits(votes));
  sync_block();
  const int64_t here = counted_before(of_warp, merge_threads() / kWarp);
  if (here > 0 && before < 0) before = sentinels_before(args.ids, args.ids_stride, start);
  const uint32_t lower = (uint32_t{1} << lane()) - 1;
  const int64_t rank = before + counted_before(of_warp, warp) + count_bits(votes & lower);
  ranks.store(thread, mine && rank < args.image_rows ? rank : -1);
  if (before >= 0) before += here;
  sync_block();
}

// blockDim is (threads along a row, rows at a time); the grid covers the rows in x, each block
// rows_a_block neighbours, and a row's parts in y.
template <class T, int kVec>
__global__ void __launch_bounds__(kMergeThreads, kMergeBlocks)
    merge_image_tokens_kernel(MergeImageTokensArgs<T> args) {
  FLASHVL_SHARED(int64_t, ranks, kMergeThreads);
  const int64_t first = blockIdx.x * args.rows_a_block;
  const int64_t last = min(first + args.rows_a_block, args.rows);
  const RowPart<kVec> part;
  int64_t before = -1;
#pragma unroll 1
  for (int64_t start = first; start < last; start += merge_threads()) {
    const int64_t end = min(start + merge_threads(), last);
    rank_rows(args, start, end, ranks, before);
#pragma unroll 1
    for (int64_t row = start + threadIdx.y; row < end; row += blockDim.y) {
      const int64_t rank = ranks.load(row - start);
      const Global<const T> from = rank < 0 ? args.embeds + args.embeds_rows.offset(row)
                                            : args.images + rank * args.image_stride;
      copy_row(part, from, args.y + row * args.columns, args.columns);
    }
  }
}

}  // namespace flashvl::cuda
