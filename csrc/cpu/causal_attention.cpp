// Causal attention with grouped queries: matrix/flash.h over (sequence, KV head, part) items.
//
// The query heads that share a KV head lie side by side in a block of queries: 32 lanes are 5 rows
// of 6 heads. So one query row still fills the lanes, and of the key blocks above the diagonal all
// but the last few keys are skipped. Bound by the tile unit and the exponentials.

#include "causal_attention.h"

#include "matrix/flash.h"

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

template <class T>
void causal_item(const CausalAttentionArgs& args, Flash<T>& flash, int64_t item) {
  const FlashArgs& tensors = args.flash;
  const int64_t part = item % args.parts;
  const int64_t kv_head = item / args.parts % args.kv_heads;
  const int64_t sequence = item / args.parts / args.kv_heads;
  const int64_t group = tensors.heads / args.kv_heads;
  const int64_t keys = args.lengths[sequence];
  const int64_t padding = args.rows > keys ? args.rows - keys : 0;  // rows left of key 0
  const int64_t pairs = (args.rows - padding) * group;              // of a row and a query head
  const int64_t blocks = (pairs + kQueries - 1) / kQueries;
  if (part >= blocks) return;

  // Later blocks see more keys: parts take turns, so that each has some of all.
  flash.pack(flash_row<T>(tensors.k, sequence, 0, kv_head), tensors.k.token,
             flash_row<T>(tensors.v, sequence, 0, kv_head), tensors.v.token, keys);
  for (int64_t block = part; block < blocks; block += args.parts) {
    for (int64_t i = block * kQueries; i < pairs && i < (block + 1) * kQueries; ++i) {
      const int64_t row = padding + i / group, head = kv_head * group + i % group;
      flash.add({.row = flash_row<T>(tensors.q, sequence, row, head),
                 .keys = keys - args.rows + row + 1,
                 .out = flash_out<T>(tensors, sequence * args.rows + row, head),
                 .sum = nullptr,
                 .weight = 0.0f});
    }
  }
  flash.flush();
}

template <class T>
void zero_rows(const CausalAttentionArgs& args, int64_t sequence) {
  const int64_t keys = args.lengths[sequence];
  if (keys >= args.rows) return;
  T* out = flash_out<T>(args.flash, sequence * args.rows, 0);
  const int64_t count = (args.rows - keys) * args.flash.heads * args.flash.head_dim;
  for_lanes(count, [&](int64_t i, int64_t n) { store_some(out + i, zero(), n); });
}

template <class T>
void causal_items(const CausalAttentionArgs& args, const FlashTask& task) {
  const FlashScope scope;
  FlashArena arena(task.memory);
  Flash<T> flash(arena, args.flash.head_dim, args.longest, 1, args.flash.scale);
  const int64_t items = args.batch * args.kv_heads * args.parts;
  for (int64_t i = task.task; i < items; i += task.tasks) causal_item(args, flash, i);
  for (int64_t b = task.task; b < args.batch; b += task.tasks) zero_rows<T>(args, b);
}

}  // namespace

int64_t causal_attention_bytes(const CausalAttentionArgs& args) {
  return flash_bytes(args.flash.dtype, args.flash.head_dim, args.longest, 1);
}

void causal_attention(const CausalAttentionArgs& args, const FlashTask& task) {
  switch (args.flash.dtype) {
    case DType::f32:
      return causal_items<float>(args, task);
    case DType::bf16:
      return causal_items<BF16>(args, task);
    case DType::f16:
      return causal_items<F16>(args, task);
  }
}

}  // namespace flashvl::cpu::FLASHVL_LEVEL
