// One query a sequence over its KV cache, split over the keys (Flash-Decoding, Dao et al. 2023;
// softmax put together from parts as in Milakov and Gimelshein, arXiv 1805.02867).
//
// Bound by reading keys and values at long lengths, by the call itself at short ones. All query
// heads of a KV head are computed together, so that each is read from memory once: a task takes 256
// keys (64 KiB of bf16 keys at head dimension 128, in the second-level cache when heads come in
// several blocks), writes its scores to the stack, turns them into weights under their own maximum,
// and sums the weighted values. A second pass rescales the tasks' sums to the common maximum.
//
// NaN and infinite scores need no branch: a NaN weight, or infinity minus infinity, makes the sum
// of the weights NaN and with it the row. Keys past a sequence's length are never read.

#include "decode_attention.h"

#include "columns.h"
#include "vec_math.h"

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

// Query heads and keys whose products are summed side by side: 6 x 4 sums, 4 keys and a query are
// 29 of AVX-512's 32 registers, 2 x 4 leave 3 of AVX2's 16 free. Qwen2 has 6 heads on a KV head.
constexpr int kHeads = kLanes == 16 ? 6 : 2;
constexpr int kKeys = 4;
constexpr int kStrip = 4;  // vectors of channels summed over the keys at a time

// How far ahead of the arithmetic rows are fetched: without it, too few of the loads in flight are
// those that miss, and reading waits for computing.
constexpr int64_t kAhead = 16;

constexpr float kInfinity = __builtin_inff();

inline int64_t rounded(int64_t head_dim) {
  return (head_dim + kDecodeRound - 1) / kDecodeRound * kDecodeRound;
}

// One task's keys and values, and `heads` of its query heads.
template <class T>
struct Block {
  const T* k;
  int64_t k_key;
  const T* v;
  int64_t v_key;
  int64_t keys;
  int64_t head_dim;
  float* sums;   // first the scaled queries, then the weighted sums of values
  float* stats;  // largest score, sum of the weights
};

// Asks for a row of keys or values.
template <class T>
inline void fetch_row(const T* row, int64_t head_dim) {
  for (int64_t c = 0; c < head_dim; c += 64 / static_cast<int64_t>(sizeof(T))) fetch(row + c);
}

// scores[h][key] of `count` keys from `key` on.
template <int heads, int count, class T>
inline void score_keys(const Block<T>& block, int64_t key, float (*scores)[kDecodeKeys]) {
  const int64_t row = rounded(block.head_dim);
  F32 sums[heads][count];
  for (int h = 0; h < heads; ++h) {
    for (int i = 0; i < count; ++i) sums[h][i] = zero();
  }
  const T* k = block.k + key * block.k_key;
  for (int i = 0; i < count; ++i) fetch_row(k + (i + kAhead) * block.k_key, block.head_dim);
  over_columns(block.head_dim, [&](int64_t c, auto n) {
    F32 keys[count];
#pragma GCC unroll 4
    for (int i = 0; i < count; ++i) keys[i] = load_at(k + i * block.k_key + c, n);
#pragma GCC unroll 6
    for (int h = 0; h < heads; ++h) {
      const F32 query = load(block.sums + h * row + c);
#pragma GCC unroll 4
      for (int i = 0; i < count; ++i) sums[h][i] = fma(query, keys[i], sums[h][i]);
    }
  });
  for (int h = 0; h < heads; ++h) {
    if constexpr (count == 4) {
      reduce_add_each(sums[h], scores[h] + key);
    } else {
      for (int i = 0; i < count; ++i) scores[h][key + i] = reduce_add(sums[h][i]);
    }
  }
}

// Scores to weights e^(score - largest); largest and sum go to stats.
inline void weigh(float* scores, int64_t keys, float* stats) {
  int64_t end = keys;
  for (; end % kLanes != 0; ++end) scores[end] = -kInfinity;
  F32 top = splat(-kInfinity);
  for (int64_t i = 0; i < end; i += kLanes) top = max(top, load(scores + i));
  const float largest = reduce_max(top);
  // Where all scores are -infinity, so is the largest, and every weight is to be zero.
  const F32 shift = splat(largest == -kInfinity ? 0.0f : largest);
  F32 sum = zero();
  for (int64_t i = 0; i < end; i += kLanes) {
    const F32 weight = exp(load(scores + i) - shift);
    store(scores + i, weight);
    sum = sum + weight;
  }
  stats[0] = largest;
  stats[1] = reduce_add(sum);
}

// sums[h][c...] = the weighted values of `vectors` vectors of channels, the last of n channels.
template <int heads, int vectors, class T, class Count>
inline void sum_values(const Block<T>& block, int64_t c, Count n,
                       const float (*weights)[kDecodeKeys]) {
  F32 sums[heads][vectors];
  for (int h = 0; h < heads; ++h) {
    for (int j = 0; j < vectors; ++j) sums[h][j] = zero();
  }
  const T* v = block.v + c;
  for (int64_t key = 0; key < block.keys; ++key, v += block.v_key) {
    if (c == 0) fetch_row(v + kAhead * block.v_key, block.head_dim);
    F32 values[vectors];
#pragma GCC unroll 4
    for (int j = 0; j + 1 < vectors; ++j) values[j] = load(v + j * kLanes);
    values[vectors - 1] = load_at(v + (vectors - 1) * kLanes, n);
#pragma GCC unroll 6
    for (int h = 0; h < heads; ++h) {
      const F32 weight = splat(weights[h][key]);
#pragma GCC unroll 4
      for (int j = 0; j < vectors; ++j) sums[h][j] = fma(weight, values[j], sums[h][j]);
    }
  }
  const int64_t row = rounded(block.head_dim);
  for (int h = 0; h < heads; ++h) {
    for (int j = 0; j < vectors; ++j) store(block.sums + h * row + c + j * kLanes, sums[h][j]);
  }
}

template <int heads, class T>
void attend_heads(const Block<T>& block) {
  alignas(64) float scores[heads][kDecodeKeys];
  int64_t key = 0;
  for (; key + kKeys <= block.keys; key += kKeys) score_keys<heads, kKeys>(block, key, scores);
  for (; key < block.keys; ++key) score_keys<heads, 1>(block, key, scores);
  for (int h = 0; h < heads; ++h) weigh(scores[h], block.keys, block.stats + 2 * h);
  int64_t c = 0;
  for (; c + kStrip * kLanes <= block.head_dim; c += kStrip * kLanes) {
    sum_values<heads, kStrip>(block, c, Whole{}, scores);
  }
  over_columns(block.head_dim - c,
               [&](int64_t rest, auto n) { sum_values<heads, 1>(block, c + rest, n, scores); });
}

// Blocks of kHeads heads, then the rest.
template <class T>
void attend(Block<T> block, int64_t group) {
  const int64_t row = rounded(block.head_dim);
  for (int64_t h = 0; h < group;) {
    const int64_t left = group - h;
    const int64_t heads = left >= kHeads ? kHeads : left >= 2 ? 2 : 1;
    if (heads == kHeads) {
      attend_heads<kHeads>(block);
    } else if (heads == 2) {
      attend_heads<2>(block);
    } else {
      attend_heads<1>(block);
    }
    h += heads;
    block.sums += heads * row;
    block.stats += 2 * heads;
  }
}

template <class T>
void run_task(const DecodeAttentionArgs& args, int64_t batch, int64_t task) {
  const int64_t length = args.lengths[batch], row = rounded(args.head_dim);
  const int64_t blocks = (length + kDecodeKeys - 1) / kDecodeKeys;
  const int64_t kv_head = (task - args.first_task[batch]) / blocks;
  const int64_t first = (task - args.first_task[batch]) % blocks * kDecodeKeys;
  Block<T> block = {
      .k = static_cast<const T*>(args.k) + batch * args.k_batch + kv_head * args.k_head +
           first * args.k_key,
      .k_key = args.k_key,
      .v = static_cast<const T*>(args.v) + batch * args.v_batch + kv_head * args.v_head +
           first * args.v_key,
      .v_key = args.v_key,
      .keys = length - first < kDecodeKeys ? length - first : kDecodeKeys,
      .head_dim = args.head_dim,
      .sums = args.sums + task * args.group * row,
      .stats = args.stats + task * args.group * 2,
  };
  for (int64_t h = 0; h < args.group; ++h) {
    const T* q = static_cast<const T*>(args.q) + batch * args.q_batch +
                 (kv_head * args.group + h) * args.q_head;
    float* wide = block.sums + h * row;
    over_columns(args.head_dim, [&](int64_t c, auto n) {
      store(wide + c, load_at(q + c, n) * splat(args.scale));
    });
  }
  attend(block, args.group);
}

template <class T>
void run_tasks(const DecodeAttentionArgs& args, int64_t begin, int64_t end) {
  int64_t batch = 0;
  for (int64_t task = begin; task < end; ++task) {
    while (args.first_task[batch + 1] <= task) ++batch;
    run_task<T>(args, batch, task);
  }
}

// The tasks [first, first + count) of head h to one row. Without a task, the sum of no weights
// would divide zero by zero, where the row of an empty sequence is to be zeros.
template <class T>
void combine(const DecodeAttentionArgs& args, int64_t first, int64_t count, int64_t h, T* out) {
  const int64_t row = rounded(args.head_dim);
  const float* sums = args.sums + (first * args.group + h) * row;
  float* stats = args.stats + (first * args.group + h) * 2;
  F32 top = splat(-kInfinity), total = splat(count == 0 ? 1.0f : 0.0f);
  for (int64_t t = 0; t < count; ++t) top = max(top, splat(stats[t * args.group * 2]));
  for (int64_t t = 0; t < count; ++t) {
    float* stat = stats + t * args.group * 2;
    const F32 weight = exp(splat(stat[0]) - top);
    total = fma(weight, splat(stat[1]), total);
    store_some(stat, weight, 1);
  }
  const F32 inverse = splat(1.0f) / total;
  over_columns(args.head_dim, [&](int64_t c, auto n) {
    F32 sum = zero();
    for (int64_t t = 0; t < count; ++t) {
      const int64_t part = t * args.group;
      sum = fma(splat(stats[2 * part]), load(sums + part * row + c), sum);
    }
    store_at(out + c, sum * inverse, n);
  });
}

template <class T>
void run_pairs(const DecodeAttentionArgs& args, int64_t begin, int64_t end) {
  for (int64_t pair = begin; pair < end; ++pair) {
    const int64_t batch = pair / args.kv_heads, kv_head = pair % args.kv_heads;
    const int64_t count = (args.first_task[batch + 1] - args.first_task[batch]) / args.kv_heads;
    const int64_t first = args.first_task[batch] + kv_head * count;
    for (int64_t h = 0; h < args.group; ++h) {
      combine(args, first, count, h,
              static_cast<T*>(args.out) + (pair * args.group + h) * args.head_dim);
    }
  }
}

}  // namespace

void decode_attention_tasks(const DecodeAttentionArgs& args, int64_t begin, int64_t end) {
  switch (args.dtype) {
    case DType::f32:
      return run_tasks<float>(args, begin, end);
    case DType::bf16:
      return run_tasks<BF16>(args, begin, end);
    case DType::f16:
      return run_tasks<F16>(args, begin, end);
  }
}

void decode_attention_pairs(const DecodeAttentionArgs& args, int64_t begin, int64_t end) {
  switch (args.dtype) {
    case DType::f32:
      return run_pairs<float>(args, begin, end);
    case DType::bf16:
      return run_pairs<BF16>(args, begin, end);
    case DType::f16:
      return run_pairs<F16>(args, begin, end);
  }
}

}  // namespace flashvl::cpu::FLASHVL_LEVEL
