// Attention inside each tile, tiles of one size or packed with their lengths: flash_mma.cuh, and
// flash_fma.cuh for fp32.
//
// Bound by FLOPs: 4 a pair of tokens and channel. A block has the queries of one head of one tile;
// packed tiles are found by a sum over the lengths, on the device, so nothing waits for the host.
#pragma once

#include "flash.cuh"

namespace flashvl::cuda {

template <class T>
struct TileAttentionArgs {
  Operand<T> q, k, v;
  Global<T> out;                  // contiguous [.., heads, channels]
  Global<const int64_t> lengths;  // of packed tiles, or null
  int64_t tiles, tokens, heads, channels;
  int64_t out_wide;
  float scale;
};

// The rows of one block in one tile.
struct TileBlock {
  int64_t tile;   // of a batch; 0 where tiles are packed
  int64_t start;  // the tile's first row
  int64_t length;
  int64_t first;  // the block's first row in the tile; past `length` where there is nothing to do
};

// Which packed tile the `block`-th block of `rows` rows lies in: every warp sums for itself.
__device__ __forceinline__ TileBlock packed_block(Global<const int64_t> lengths, int64_t tiles,
                                                  int64_t block, int rows) {
  int64_t start = 0;
#pragma unroll 1
  for (int64_t base = 0; base < tiles; base += kWarp) {
    const int64_t mine = base + lane() < tiles ? lengths.load(base + lane()) : 0;
    const int count = static_cast<int>(min(tiles - base, static_cast<int64_t>(kWarp)));
    for (int i = 0; i < count; ++i) {
      const int64_t length = shuffle_idx(mine, i);
      const int64_t blocks = (length + rows - 1) / rows;
      if (block < blocks) return {0, start, length, block * rows};
      block -= blocks;
      start += length;
    }
  }
  return {0, 0, 0, 0};
}

// The block's place in a batch of tiles of one size.
__device__ __forceinline__ TileBlock batch_block(int64_t tokens, int64_t block, int rows) {
  const int64_t blocks = (tokens + rows - 1) / rows, tile = block / blocks;
  return {tile, 0, tokens, (block - tile * blocks) * rows};
}

// The grid is (blocks of rows of all tiles, heads).
template <class T, int kDim>
__global__ void __launch_bounds__(Flash<T, kDim>::kThreads)
    tile_attention_kernel(TileAttentionArgs<T> args) {
  using Block = Flash<T, kDim>;
  const int64_t head = blockIdx.y;
  const TileBlock at = args.lengths
                           ? packed_block(args.lengths, args.tiles, blockIdx.x, Block::kRows)
                           : batch_block(args.tokens, blockIdx.x, Block::kRows);
  if (at.first >= at.length) return;
  const auto origin = [&](const Operand<T>& x) {
    return at.tile * x.batch + at.start * x.token + head * x.head;
  };
  const int64_t q_first = origin(args.q) + at.first * args.q.token;
  const int rows = static_cast<int>(min(at.length - at.first, static_cast<int64_t>(Block::kRows)));
  const KeyRows<T> keys{args.k, args.v, origin(args.k), origin(args.v), args.channels};
  Block flash = flash_of_block<T, kDim>();
  flash.load_queries(args.q, args.channels,
                     [&](int row) { return row < rows ? q_first + row * args.q.token : -1; });
  flash.attend(keys, 0, at.length, at.length, rows, args.scale, [&](int) { return at.length; });
  flash.scale_rows([&](int i) { return softmax_scale(flash.sum(i)); });
  const int64_t width = args.heads * args.channels;
  const int64_t out_first =
      (at.tile * args.tokens + at.start + at.first) * width + head * args.channels;
  flash.store(args.out, args.channels, args.out_wide,
              [&](int row) { return row < rows ? out_first + row * width : -1; });
}

}  // namespace flashvl::cuda
