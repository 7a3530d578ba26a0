// Attention of one new query a sequence over its KV cache, the keys split over blocks and warps
// (Flash-Decoding, Dao et al., 2023).
//
// Bound by bytes: the keys and values once, for all the query heads that share them. These heads
// are the rows of one 16-row product, so tensor cores take in as many keys as memory gives. Every
// warp (in fp32, every block) keeps copies of its own keys under way and waits for no other. What
// the warps found is merged in shared memory; what the blocks found, by the last of them to arrive,
// in the order of the keys: the same bits every time. Blocks split the length that is there, which
// the host need not know.
#pragma once

#include "arrival.cuh"
#include "flash.cuh"

namespace flashvl::cuda {

constexpr int kDecodeRows = 16;
constexpr int kDecodeThreads = 128;
// Blocks a multiprocessor holds at least: as many as the plan wants. Without the number, ptxas
// spills on sm_100 and sm_120 to make room for a fifth.
constexpr int kDecodeBlocks = 2;

template <class T, int kDim>
struct DecodeOf {
  static constexpr int kTeams = 4;
  static constexpr int kKeys = kDim <= 80 ? 32 : 16;
  using type = FlashMma<T, kDim, 1, 1, kKeys>;
};
template <int kDim>
struct DecodeOf<float, kDim> {
  static constexpr int kTeams = 1;
  static constexpr int kKeys = kDim <= 128 ? 32 : 16;
  using type = FlashFma<kDim, 1, kKeys>;
};

template <class T>
struct DecodeAttentionArgs {
  Operand<T> q, k, v;             // of q, the token stride is not used
  Global<T> out;                  // contiguous [sequences, heads, channels]
  Global<const int64_t> lengths;  // of the sequences in the cache
  // Where blocks leave what they found, for each (sequence, KV head, 16 rows) and split; null
  // where there is one split. Counters are zero before and after a launch.
  Global<float> partial;  // [.., splits, 16, kDim]
  Global<float> softmax;  // [.., splits, 16, 2]: maximum and sum
  Global<int> counters;   // [..]
  int64_t kv_heads, group, channels, splits;
  int64_t out_wide;
  float scale;
};

// A row's outputs from `parts` of its keys, four channels at a time: calls
// visit(row, channel, outputs, maximum, sum), outputs not yet divided by the sum.
// softmax(part, row) is a Vec of maximum and sum; outputs(part, row, channel) four of them.
template <int kDim, class S, class O, class V>
__device__ __forceinline__ void merge_parts(int parts, int rows, S softmax, O outputs, V visit) {
  for (int i = threadIdx.x; i < rows * (kDim / 4); i += kDecodeThreads) {
    const int row = i / (kDim / 4), channel = i % (kDim / 4) * 4;
    float top = kMinusInfinity;
    for (int p = 0; p < parts; ++p) top = fmaxf(top, softmax(p, row)[0]);
    const float base = top == kMinusInfinity ? 0.0f : top;
    Vec<float, 4> total{};
    float sum = 0.0f;
    // Eight loads under way: the last block is alone, and waits for each.
#pragma unroll 8
    for (int p = 0; p < parts; ++p) {
      const Vec<float, 2> s = softmax(p, row);
      const Vec<float, 4> o = outputs(p, row, channel);
      const float weight = exp2f(s[0] - base);
      sum = fmaf(weight, s[1], sum);
#pragma unroll
      for (int e = 0; e < 4; ++e) total[e] = fmaf(weight, o[e], total[e]);
    }
    visit(row, channel, total, top, sum);
  }
}

template <class T>
__device__ __forceinline__ void store_decoded(const DecodeAttentionArgs<T>& args, int64_t offset,
                                              int channel, const Vec<float, 4>& total, float sum) {
  if (channel >= args.channels) return;
  const float by = softmax_scale(sum);
  Vec<T, 4> values;
#pragma unroll
  for (int e = 0; e < 4; ++e) values[e] = from_float<T>(total[e] * by);
  if (args.out_wide) {
    args.out.store(offset + channel, values);
  } else {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if (channel + e < args.channels) args.out.store(offset + channel + e, values[e]);
    }
  }
}

// The grid is (splits of every sequence, KV heads times their groups of 16 query heads).
template <class T, int kDim>
__global__ void __launch_bounds__(kDecodeThreads, kDecodeBlocks)
    decode_attention_kernel(DecodeAttentionArgs<T> args) {
  using Team = typename DecodeOf<T, kDim>::type;
  constexpr int kTeams = DecodeOf<T, kDim>::kTeams, kKeys = DecodeOf<T, kDim>::kKeys;
  constexpr int kElements = Team::kQueryElements + Team::kKeyElements;
  constexpr int kMergeStride = kDim + 8;  // rows of a fragment in banks of their own
  FLASHVL_SHARED(float, team_softmax, kTeams * kDecodeRows * 2);

  const int splits = static_cast<int>(args.splits), split = blockIdx.x % splits;
  const int64_t sequence = blockIdx.x / splits;
  const int64_t row_blocks = (args.group + kDecodeRows - 1) / kDecodeRows;
  const int64_t kv_head = blockIdx.y / row_blocks;
  const int64_t first_row = blockIdx.y % row_blocks * kDecodeRows;
  const int rows = static_cast<int>(min(args.group - first_row, static_cast<int64_t>(kDecodeRows)));
  const int64_t head = kv_head * args.group + first_row;

  const int64_t length = args.lengths.load(sequence);
  constexpr int64_t kStep = kTeams * kKeys;
  const int64_t steps = (length + kStep - 1) / kStep;
  const int64_t share = max((steps + splits - 1) / splits, static_cast<int64_t>(1)) * kStep;
  const int used = static_cast<int>(max((length + share - 1) / share, static_cast<int64_t>(1)));
  if (split >= used) return;

  const int team = threadIdx.x / Team::kThreads, rank = threadIdx.x % Team::kThreads;
  const int64_t first = min(split * share + team * (share / kTeams), length);
  const int64_t last = min(first + share / kTeams, length);
  const Shared<T> memory = dynamic_shared<T>() + team * kElements;
  Team flash(memory, memory + Team::kQueryElements, rank);
  const int64_t q_first = sequence * args.q.batch + head * args.q.head;
  flash.load_queries(args.q, args.channels,
                     [&](int row) { return row < rows ? q_first + row * args.q.head : -1; });
  const KeyRows<T> keys{args.k, args.v, sequence * args.k.batch + kv_head * args.k.head,
                        sequence * args.v.batch + kv_head * args.v.head, args.channels};
  flash.attend(keys, first, last, last, rows, args.scale, [&](int) { return last; });

  sync_block();  // keys and queries make room for what the teams found
  const Shared<float> found = dynamic_shared<float>();
  flash.each_vector([&](int row, int channel, const auto& values) {
    found.store((team * kDecodeRows + row) * kMergeStride + channel, values);
  });
#pragma unroll
  for (int i = 0; i < Team::kRowsAThread; ++i) {
    if (!flash.owns(i)) continue;
    const Vec<float, 2> softmax{{flash.maximum(i), flash.sum(i)}};
    team_softmax.store((team * kDecodeRows + flash.row(i)) * 2, softmax);
  }
  sync_block();

  const int64_t out_first = (sequence * args.kv_heads * args.group + head) * args.channels;
  const int64_t task = sequence * gridDim.y + blockIdx.y;
  const Global<float> partial = args.partial + task * splits * kDecodeRows * kDim;
  const Global<float> softmax = args.softmax + task * splits * kDecodeRows * 2;
  merge_parts<kDim>(
      kTeams, rows,
      [&](int p, int row) { return team_softmax.template load<2>((p * kDecodeRows + row) * 2); },
      [&](int p, int row, int channel) {
        return found.template load<4>((p * kDecodeRows + row) * kMergeStride + channel);
      },
      [&](int row, int channel, const Vec<float, 4>& total, float top, float sum) {
        if (used == 1) {
          store_decoded(args, out_first + row * args.channels, channel, total, sum);
          return;
        }
        partial.store((split * kDecodeRows + row) * kDim + channel, total);
        const Vec<float, 2> both{{top, sum}};
        if (channel == 0) softmax.store((split * kDecodeRows + row) * 2, both);
      });
  if (used == 1 || !last_to_arrive(args.counters + task, used)) return;
  merge_parts<kDim>(
      used, rows,
      [&](int p, int row) { return softmax.template load<2>((p * kDecodeRows + row) * 2); },
      [&](int p, int row, int channel) {
        return partial.template load<4>((p * kDecodeRows + row) * kDim + channel);
      },
      [&](int row, int channel, const Vec<float, 4>& total, float, float sum) {
        store_decoded(args, out_first + row * args.channels, channel, total, sum);
      });
}

}  // namespace flashvl::cuda
