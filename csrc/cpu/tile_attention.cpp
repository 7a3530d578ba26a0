// Bidirectional attention inside each tile: matrix/flash.h over (tile, group of heads, part) items.
//
// A tile's keys and values are packed once a head and stay in the second-level cache for all of its
// queries (1024 keys of 72 bf16: 350 KB). Heads go in groups because a token's heads lie side by
// side and tokens lie pages apart (in the output of a fused projection 9 KB): one at a time, each
// row it read would be a miss in the translation buffer. Bound by the tile unit, its operands from
// the second-level cache, and the exponentials.

#include "tile_attention.h"

#include "matrix/flash.h"

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

// The tokens of a tile: rows [first, first + count) of `outer`, and of the output from `out` on.
struct Tile {
  int64_t outer;
  int64_t first;
  int64_t count;
  int64_t out;
};

Tile tile_at(const TileAttentionArgs& args, int64_t tile) {
  if (args.starts == nullptr) return {tile, 0, args.tokens, tile * args.tokens};
  const int64_t first = args.starts[tile];
  return {0, first, args.starts[tile + 1] - first, first};
}

template <class T>
void pack_heads(const TileAttentionArgs& args, Flash<T>& flash, const Tile& tile, int64_t head) {
  const FlashTensor &k = args.flash.k, &v = args.flash.v;
  for (int64_t key = 0; key < tile.count; key += kPackKeys) {
    for (int64_t h = 0; h < args.group; ++h) {
      flash.use(h);
      for (int64_t i = key + kPackKeys; i < key + 2 * kPackKeys && i < tile.count; ++i) {
        fetch(flash_row<T>(k, tile.outer, tile.first + i, head + h), args.flash.head_dim);
        fetch(flash_row<T>(v, tile.outer, tile.first + i, head + h), args.flash.head_dim);
      }
      flash.pack_some(flash_row<T>(k, tile.outer, tile.first, head + h), k.token,
                      flash_row<T>(v, tile.outer, tile.first, head + h), v.token, tile.count, key);
    }
  }
}

template <class T>
void tile_item(const TileAttentionArgs& args, Flash<T>& flash, int64_t item) {
  const int64_t groups = args.flash.heads / args.group;
  const int64_t part = item % args.parts, head = item / args.parts % groups * args.group;
  const Tile tile = tile_at(args, item / args.parts / groups);
  const int64_t blocks = (tile.count + kQueries - 1) / kQueries;
  const int64_t begin = blocks * part / args.parts, end = blocks * (part + 1) / args.parts;
  if (begin == end) return;
  pack_heads(args, flash, tile, head);
  for (int64_t block = begin; block < end; ++block) {
    const int64_t first = block * kQueries;
    const int64_t last = first + kQueries < tile.count ? first + kQueries : tile.count;
    for (int64_t h = 0; h < args.group; ++h) {
      flash.use(h);
      for (int64_t i = first; i < last; ++i) {
        const T* row = flash_row<T>(args.flash.q, tile.outer, tile.first + i, head + h);
        if (i + kQueries < tile.count) flash.expect(row + kQueries * args.flash.q.token);
        flash.add({.row = row,
                   .keys = tile.count,
                   .out = flash_out<T>(args.flash, tile.out + i, head + h),
                   .sum = nullptr,
                   .weight = 0.0f});
      }
      flash.flush();
    }
  }
}

template <class T>
void tile_items(const TileAttentionArgs& args, const FlashTask& task) {
  const FlashScope scope;
  FlashArena arena(task.memory);
  Flash<T> flash(arena, args.flash.head_dim, args.tokens, args.group, args.flash.scale);
  const int64_t items = args.tiles * (args.flash.heads / args.group) * args.parts;
  for (int64_t i = task.task; i < items; i += task.tasks) tile_item(args, flash, i);
}

}  // namespace

int64_t tile_attention_bytes(const TileAttentionArgs& args) {
  return flash_bytes(args.flash.dtype, args.flash.head_dim, args.tokens, args.group);
}

void tile_attention(const TileAttentionArgs& args, const FlashTask& task) {
  switch (args.flash.dtype) {
    case DType::f32:
      return tile_items<float>(args, task);
    case DType::bf16:
      return tile_items<BF16>(args, task);
    case DType::f16:
      return tile_items<F16>(args, task);
  }
}

}  // namespace flashvl::cpu::FLASHVL_LEVEL
