// Attention inside overlapping tiles, written as one stitched canvas: flash_mma.cuh, and
// flash_fma.cuh for fp32.
//
// Bound by FLOPs: 4 a pair and channel, of the queries the canvas is made of. The canvas is cut
// into rectangles whose positions come from the same tiles; a block has the queries of one head at
// up to 128 positions of one rectangle. Under crop each has one tile and other queries are not
// computed. Under mean and linear a block goes over the two or four tiles of its rectangle one
// after the other and blends in fp32, rounded once: no tile's result ever reaches memory.
#pragma once

#include "flash.cuh"
#include "tiling.cuh"

namespace flashvl::cuda {

// A stretch of an axis of the canvas that comes from the same one or two tiles.
struct Stretch {
  int first, count;  // positions on the canvas
  int tile, ways;    // the upper (left) tile
};

template <class T>
struct StitchedTileAttentionArgs {
  Operand<T> q, k, v;
  Global<T> out;  // contiguous [images, canvas, heads, channels]
  Tiling tiling;
  int64_t image_blocks;  // of one image: the blocks of all rectangles
  int64_t heads, channels;
  int64_t out_wide;
  float scale;
};

__device__ __forceinline__ int stretches(const Tiling& tiling, const TileAxis& axis) {
  return tiling.blended ? 2 * axis.tiles - 1 : axis.tiles;
}

// Under crop stretch i is what tile i owns. Blended, even ones are a tile's own middle (it may be
// empty) and odd ones where two tiles overlap.
__device__ __forceinline__ Stretch stretch_at(const Tiling& tiling, const TileAxis& axis, int i) {
  const int overlap = axis.overlap, border = axis.border, step = axis.step();
  const int index = tiling.blended ? i / 2 : i;
  if (tiling.blended && i % 2 == 1) return {(index + 1) * step - border, overlap, index, 2};
  const int cut_front = tiling.blended ? overlap : (overlap + 1) / 2;
  const int cut_back = tiling.blended ? overlap : overlap / 2;
  const int start = index == 0 ? border : cut_front;
  const int stop = axis.tile - (index == axis.tiles - 1 ? border : cut_back);
  return {index * step + start - border, stop - start, index, 1};
}

struct Rectangle {
  Stretch down, across;
  int first;  // the block's first position in it
};

__device__ __forceinline__ Rectangle rectangle_of(const Tiling& tiling, int block, int rows) {
  Rectangle at{};
  const int downs = stretches(tiling, tiling.down), acrosses = stretches(tiling, tiling.across);
#pragma unroll 1
  for (int i = 0; i < downs * acrosses; ++i) {
    at.down = stretch_at(tiling, tiling.down, i / acrosses);
    at.across = stretch_at(tiling, tiling.across, i % acrosses);
    const int blocks = (at.down.count * at.across.count + rows - 1) / rows;
    if (block < blocks) break;
    block -= blocks;
  }
  at.first = block * rows;
  return at;
}

// The grid is (blocks of all images, heads).
template <class T, int kDim, bool kBlend>
__global__ void __launch_bounds__(Flash<T, kDim>::kThreads, 1)
    stitched_tile_attention_kernel(StitchedTileAttentionArgs<T> args) {
  using Block = Flash<T, kDim>;
  const int64_t head = blockIdx.y, image = blockIdx.x / args.image_blocks;
  const Tiling& tiling = args.tiling;
  const TileAxis &down = tiling.down, &across = tiling.across;
  const Rectangle at =
      rectangle_of(tiling, static_cast<int>(blockIdx.x - image * args.image_blocks), Block::kRows);
  const int width = at.across.count;
  const int rows = min(at.down.count * width - at.first, Block::kRows);
  Block flash = flash_of_block<T, kDim>();
  const Shared<float> blended = dynamic_shared<float>(
      (Block::kQueryElements + Block::kKeyElements) * static_cast<int64_t>(sizeof(T)));

  const int sources = kBlend ? at.down.ways * at.across.ways : 1;
#pragma unroll 1
  for (int source = 0; source < sources; ++source) {
    const int lower = source / at.across.ways, right = source % at.across.ways;
    const int tile_row = at.down.tile + lower, tile_column = at.across.tile + right;
    const int64_t tile = (image * down.tiles + tile_row) * across.tiles + tile_column;
    // Of the rectangle's first position, in the tile.
    const int top = at.down.first + down.border - tile_row * down.step();
    const int left = at.across.first + across.border - tile_column * across.step();
    const auto origin = [&](const Operand<T>& x) { return tile * x.batch + head * x.head; };
    const int64_t q_first = origin(args.q);
    flash.load_queries(args.q, args.channels, [&](int row) -> int64_t {
      if (row >= rows) return -1;
      const int y = (at.first + row) / width, x = (at.first + row) % width;
      return q_first + ((top + y) * across.tile + left + x) * args.q.token;
    });
    const int64_t tokens = static_cast<int64_t>(down.tile) * across.tile;
    const KeyRows<T> keys{args.k, args.v, origin(args.k), origin(args.v), args.channels};
    flash.attend(keys, 0, tokens, tokens, rows, args.scale, [&](int) { return tokens; });
    flash.scale_rows([&](int i) {
      float by = softmax_scale(flash.sum(i));
      if (kBlend) {
        const int position = at.first + flash.row(i);
        if (at.down.ways == 2) by *= share_of(tiling, down, lower, position / width);
        if (at.across.ways == 2) by *= share_of(tiling, across, right, position % width);
      }
      return by;
    });
    if (kBlend) {
      // Every thread keeps its own outputs apart: no barrier, and neighbours in neighbouring banks.
      flash.each_output([&](int i, float& o) {
        const int place = i * Block::kThreads + static_cast<int>(threadIdx.x);
        if (source > 0) o += blended.load(place);
        if (source + 1 < sources) blended.store(place, o);
      });
    }
  }

  const int64_t token = args.heads * args.channels;
  const int64_t out_first = image * down.length * across.length;
  flash.store(args.out, args.channels, args.out_wide, [&](int row) -> int64_t {
    if (row >= rows) return -1;
    const int y = (at.first + row) / width, x = (at.first + row) % width;
    const int64_t line = at.down.first + y;
    const int64_t position = line * across.length + at.across.first + x;
    return (out_first + position) * token + head * args.channels;
  });
}

}  // namespace flashvl::cuda
