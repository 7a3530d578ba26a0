// Bidirectional attention inside each tile: matrix/flash.h over (tile, head, part) items.
//
// A tile's keys and values are packed once a head and stay in the second-level cache for all of its
// queries (1024 keys of 72 bf16: 350 KB). Bound by the tile unit and the exponentials.

#include "tile_attention.h"

#include "matrix/flash.h"

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

template <class T>
void tile_item(const TileAttentionArgs& args, Flash<T>& flash, int64_t item) {
  const FlashArgs& tensors = args.flash;
  const int64_t part = item % args.parts;
  const int64_t head = item / args.parts % tensors.heads;
  const int64_t tile = item / args.parts / tensors.heads;
  const bool packed = args.starts != nullptr;
  const int64_t outer = packed ? 0 : tile, first = packed ? args.starts[tile] : 0;
  const int64_t tokens = packed ? args.starts[tile + 1] - first : args.tokens;
  const int64_t blocks = (tokens + kQueries - 1) / kQueries;
  const int64_t begin = blocks * part / args.parts * kQueries;
  const int64_t last = blocks * (part + 1) / args.parts * kQueries;
  const int64_t end = last < tokens ? last : tokens;
  if (begin >= end) return;

  flash.pack(flash_row<T>(tensors.k, outer, first, head), tensors.k.token,
             flash_row<T>(tensors.v, outer, first, head), tensors.v.token, tokens);
  const int64_t out = packed ? first : tile * args.tokens;
  for (int64_t i = begin; i < end; ++i) {
    flash.add({.row = flash_row<T>(tensors.q, outer, first + i, head),
               .keys = tokens,
               .out = flash_out<T>(tensors, out + i, head),
               .sum = nullptr,
               .weight = 0.0f});
  }
  flash.flush();
}

template <class T>
void tile_items(const TileAttentionArgs& args, const FlashTask& task) {
  const FlashScope scope;
  FlashArena arena(task.memory);
  Flash<T> flash(arena, args.flash.head_dim, args.tokens, args.flash.scale);
  const int64_t items = args.tiles * args.flash.heads * args.parts;
  for (int64_t i = task.task; i < items; i += task.tasks) tile_item(args, flash, i);
}

}  // namespace

int64_t tile_attention_bytes(const TileAttentionArgs& args) {
  return flash_bytes(args.flash.dtype, args.flash.head_dim, args.tokens);
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
