// Queries, keys and values split out of a fused projection, rotated, and put where they belong, in
// one pass (Su et al., arXiv 2104.09864; half-split layout of GPT-NeoX, Llama and Qwen2).
//
// Bound by bytes: 3 FLOPs an element. A thread takes the same channels of 4 heads of a row, both
// halves: 8 loads of 16 bytes under way, for one pair of cos and sin. A warp has a whole row of
// Qwen2's 16 heads of 128. Keys and values go into a cache of any strides; without one, into
// tensors described as a cache of one sequence. Rotated in fp32 and rounded once. Positions and
// slots out of range are masked: nothing looks at their values before the launch.
#pragma once

#include "memory.cuh"
#include "ptx/sync.cuh"

namespace flashvl::cuda {

// Heads of a thread.
constexpr int kRopeHeads = 4;
// Blocks a multiprocessor holds at least; sm_120 spills with three.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr int kRopeBlocks = 2;
#else
constexpr int kRopeBlocks = 3;
#endif

// cos or sin [positions, half]: one of the pointers is null.
template <class T>
struct RopeTable {
  Global<const T> narrow;
  Global<const float> wide;
  int64_t row, channel;  // strides
  int64_t vectors;       // whether 16-byte accesses are aligned
};

// Where keys or values go: [sequences, kv_heads, capacity, 2 half]; strides.
template <class T>
struct RopeTarget {
  Global<T> data;
  int64_t sequence, head, token, channel;
};

template <class T>
struct RopeQkvArgs {
  Global<const T> qkv;  // rows of all query heads, all key heads, all value heads
  RopeTable<T> cos, sin;
  Global<const int64_t> positions;  // null: row n is at position n
  Global<const int64_t> slots;      // null: row n goes to slot n
  Global<T> q;                      // contiguous [rows, heads, 2 half]
  RopeTarget<T> k, v;
  int64_t qkv_row, qkv_channel, positions_stride, slots_stride;
  int64_t rows, heads, kv_heads, half;
  int64_t table_rows, capacity, slot_count;
};

// kVec channels from c on, of a row that starts at `from`.
template <int kVec, class T>
__device__ __forceinline__ void table_values(Global<const T> table, int64_t from, int64_t c,
                                             int64_t stride, bool vectors, float (&out)[kVec]) {
  constexpr int kWide =
      16 / static_cast<int>(sizeof(T)) < kVec ? 16 / static_cast<int>(sizeof(T)) : kVec;
  if (kVec > 1 && vectors) {
#pragma unroll
    for (int i = 0; i < kVec; i += kWide) {
      const Vec<T, kWide> part = table.template load<kWide>(from + c + i);
#pragma unroll
      for (int e = 0; e < kWide; ++e) out[i + e] = to_float(part[e]);
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kVec; ++i) out[i] = to_float(table.load(from + (c + i) * stride));
}

// The same of fp32 for 8 channels, by two lanes whose channels are neighbours: each of the two
// loads fills whole sectors with what the pair needs, and the lanes swap what the other one needs.
__device__ __forceinline__ void paired_values(Global<const float> table, int64_t from, int64_t c,
                                              bool read, float (&out)[8]) {
  const bool odd = lane() % 2;
  const int64_t first = odd ? from + c - 4 : from + c;
  Vec<float, 4> a{}, b{};
  if (read) {
    a = table.load<4>(first);
    b = table.load<4>(first + 8);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float other = shuffle_xor(odd ? a[i] : b[i], 1);
    out[i] = odd ? other : a[i];
    out[4 + i] = odd ? b[i] : other;
  }
}

// Zeros where not `read`; `pairs` says that the channels of lanes 2n and 2n + 1 are neighbours.
template <int kVec, class T>
__device__ __forceinline__ void table_at(const RopeTable<T>& table, int64_t position, int64_t c,
                                         bool read, bool pairs, float (&out)[kVec]) {
  const int64_t from = position * table.row;
  if constexpr (kVec == 8) {
    if (table.wide && table.vectors && pairs) return paired_values(table.wide, from, c, read, out);
  }
  if (!read) return;
  if (table.wide) {
    table_values<kVec>(table.wide, from, c, table.channel, table.vectors, out);
  } else {
    table_values<kVec>(table.narrow, from, c, table.channel, table.vectors, out);
  }
}

template <class T, int kVec>
__device__ __forceinline__ void rotate(Vec<T, kVec>& low, Vec<T, kVec>& high,
                                       const float (&cosine)[kVec], const float (&sine)[kVec]) {
#pragma unroll
  for (int i = 0; i < kVec; ++i) {
    const float left = to_float(low[i]), right = to_float(high[i]);
    low[i] = from_float<T>(fmaf(left, cosine[i], -(right * sine[i])));
    high[i] = from_float<T>(fmaf(right, cosine[i], left * sine[i]));
  }
}

// A head in memory: its first element, and the stride of its channels.
template <class T>
struct HeadPlace {
  Global<T> data;
  int64_t channel;
};

// Where a head of `row` goes, whose slot is position `token` of `sequence`.
template <class T>
__device__ __forceinline__ HeadPlace<T> place_of(const RopeQkvArgs<T>& args, int64_t row,
                                                 int64_t sequence, int64_t token, int64_t head) {
  if (head < args.heads) return {args.q + (row * args.heads + head) * 2 * args.half, 1};
  const int64_t of_kv = head - args.heads;
  const bool value = of_kv >= args.kv_heads;
  const RopeTarget<T>& to = value ? args.v : args.k;
  const int64_t kv_head = value ? of_kv - args.kv_heads : of_kv;
  const int64_t at = sequence * to.sequence + kv_head * to.head + token * to.token;
  return {to.data + at, to.channel};
}

// Thread u of all has vector u % vectors of heads group, group + groups, ... of a row. With kVec 1
// every channel stride is taken; wider, channels are neighbours everywhere but in the tables.
template <class T, int kVec>
__global__ void __launch_bounds__(256, kRopeBlocks) rope_qkv_kernel(RopeQkvArgs<T> args) {
  const int64_t all_heads = args.heads + 2 * args.kv_heads;
  const int64_t groups = ceil_div(all_heads, kRopeHeads), vectors = args.half / kVec;
  const int64_t unit = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t row = unit / (groups * vectors), of_row = unit - row * groups * vectors;
  const bool inside = row < args.rows;
  const int64_t group = of_row / vectors, c = (of_row - group * vectors) * kVec;
  const auto along = [](int64_t channel, int64_t stride) {
    return kVec == 1 ? channel * stride : channel;
  };

  int64_t position = row, slot = row;
  if (args.positions && inside) position = args.positions.load(row * args.positions_stride);
  if (args.slots && inside) slot = args.slots.load(row * args.slots_stride);
  const bool kept = slot >= 0 && slot < args.slot_count;
  const auto moved = [&](int64_t head) {
    return inside && head < all_heads && (head < args.heads || kept);
  };
  Vec<T, kVec> low[kRopeHeads], high[kRopeHeads];
#pragma unroll
  for (int j = 0; j < kRopeHeads; ++j) {
    const int64_t head = group + j * groups;
    if (!moved(head)) continue;
    const Global<const T> from = args.qkv + row * args.qkv_row;
    const int64_t first = head * 2 * args.half + c;
    low[j] = from.template load_once<kVec>(along(first, args.qkv_channel));
    high[j] = from.template load_once<kVec>(along(first + args.half, args.qkv_channel));
  }
  float cosine[kVec] = {}, sine[kVec] = {};
  const bool known = inside && position >= 0 && position < args.table_rows;
  const bool pairs = vectors % 2 == 0;
  table_at<kVec>(args.cos, position, c, known, pairs, cosine);
  table_at<kVec>(args.sin, position, c, known, pairs, sine);
  const int64_t sequence = kept ? slot / args.capacity : 0;
  const int64_t token = slot - sequence * args.capacity;
#pragma unroll
  for (int j = 0; j < kRopeHeads; ++j) {
    const int64_t head = group + j * groups;
    if (!moved(head)) continue;
    if (head < args.heads + args.kv_heads) rotate(low[j], high[j], cosine, sine);
    const HeadPlace<T> to = place_of(args, row, sequence, token, head);
    to.data.store(along(c, to.channel), low[j]);
    to.data.store(along(c + args.half, to.channel), high[j]);
  }
}

}  // namespace flashvl::cuda
