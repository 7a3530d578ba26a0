// Causal attention of new queries over a KV cache, with grouped heads: flash_mma.cuh, and
// flash_fma.cuh for fp32.
//
// Bound by FLOPs: 4 a pair and channel, of the pairs that the mask leaves. The query heads of a KV
// head are rows of one block, token by token: keys are read once for all of them, and a block's
// rows see nearly the same keys, so little of the diagonal is computed in vain. Blocks go to the
// device longest first. Keys past a row's are not looked at beyond the block of keys they lie in.
#pragma once

#include "flash.cuh"

namespace flashvl::cuda {

template <class T>
struct CausalAttentionArgs {
  Operand<T> q, k, v;
  Global<T> out;                  // contiguous [sequences, queries, heads, channels]
  Global<const int64_t> lengths;  // of the sequences in the cache
  int64_t sequences, queries, kv_heads, group, channels;
  int64_t out_wide;
  float scale;
};

// The grid is (blocks of rows times sequences, KV heads).
template <class T, int kDim>
__global__ void __launch_bounds__(Flash<T, kDim>::kThreads)
    causal_attention_kernel(CausalAttentionArgs<T> args) {
  using Block = Flash<T, kDim>;
  const unsigned sequences = static_cast<unsigned>(args.sequences);
  const int64_t kv_head = blockIdx.y, sequence = blockIdx.x % sequences;
  const int64_t length = args.lengths.load(sequence);
  // The last rows see the most keys.
  const int64_t first =
      static_cast<int64_t>((gridDim.x - 1 - blockIdx.x) / sequences) * Block::kRows;
  const int group = static_cast<int>(args.group);
  const int rows =
      static_cast<int>(min(args.queries * group - first, static_cast<int64_t>(Block::kRows)));
  const int64_t before = length - args.queries;  // keys in front of query 0; below 0, padding
  // In 32 bits: as many rows would be more memory than there is, and the call that divides 64 bits
  // spills registers.
  const auto query_of = [&](int row) {
    return static_cast<int64_t>(static_cast<uint32_t>(first + row) / static_cast<uint32_t>(group));
  };
  const auto seen = [&](int row) {
    const int64_t keys = before + query_of(row) + 1;
    return keys > 0 ? keys : static_cast<int64_t>(0);
  };
  const auto row_of = [&](int row, int64_t outer, int64_t token, int64_t head) -> int64_t {
    if (row >= rows) return -1;
    const int64_t query = query_of(row);
    return outer + query * token + (kv_head * group + first + row - query * group) * head;
  };
  const auto origin = [&](const Operand<T>& x) { return sequence * x.batch + kv_head * x.head; };
  const KeyRows<T> keys{args.k, args.v, origin(args.k), origin(args.v), args.channels};
  Block flash = flash_of_block<T, kDim>();
  flash.load_queries(args.q, args.channels, [&](int row) {
    // The queries of padding are not looked at.
    return seen(row) == 0 ? -1 : row_of(row, sequence * args.q.batch, args.q.token, args.q.head);
  });
  flash.attend(keys, 0, seen(rows - 1), seen(0), rows, args.scale, seen);
  flash.scale_rows([&](int i) { return softmax_scale(flash.sum(i)); });
  const int64_t token = args.kv_heads * group * args.channels;
  flash.store(args.out, args.channels, args.out_wide, [&](int row) {
    return row_of(row, sequence * args.queries * token, token, args.channels);
  });
}

}  // namespace flashvl::cuda
