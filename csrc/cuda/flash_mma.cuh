// Attention of a block of queries over a range of keys, in tensor cores: bf16 and fp16.
//
// FlashAttention-2 (Dao, arXiv 2307.08691): keys come in blocks, scores stay in registers, sums
// and outputs are rescaled when a row's maximum grows. Bound by FLOPs for many queries: 4 a pair
// and channel. A warp has 16 or 32 queries and sees all keys, so softmax needs no barrier. While
// the scores of a block are computed its values are on their way, and while the values are added,
// the next block's keys: two barriers a block. K and V pass through shared memory once for all
// warps, permuted so that ldmatrix meets no bank twice.
#pragma once

#include "attention_rows.cuh"
#include "ptx/exp2.cuh"
#include "ptx/ldmatrix.cuh"
#include "ptx/mma.cuh"
#include "ptx/sync.cuh"

namespace flashvl::cuda {

template <class T>
__device__ __forceinline__ uint32_t packed_pair(float low, float high);
template <>
__device__ __forceinline__ uint32_t packed_pair<BF16>(float low, float high) {
  return bf16_pair(low, high);
}
template <>
__device__ __forceinline__ uint32_t packed_pair<F16>(float low, float high) {
  return f16_pair(low, high);
}

// kTeam: warps that share keys; a team of one warp needs no barrier of the block. kTiles: times 16
// queries a warp. kKeys: keys a block of them.
template <class T, int kDim, int kTeam, int kTiles, int kKeys>
class FlashMma {
 public:
  static constexpr int kThreads = kTeam * kWarp;  // of one team
  static constexpr int kRows = kTeam * kTiles * 16;
  static constexpr int kRowsAThread = 2 * kTiles;
  static constexpr int kQueryElements = kRows * kDim;
  static constexpr int kKeyElements = 2 * kKeys * kDim;
  static constexpr int kOutputs = kTiles * kDim / 2;  // of one thread

  // queries: kQueryElements in shared memory, keys: kKeyElements; rank: of the thread in its team.
  __device__ __forceinline__ FlashMma(Shared<T> queries, Shared<T> keys, int rank)
      : q_{queries}, k_{keys}, v_{keys + kKeys * kDim}, rank_(rank) {}

  // The row that this thread's i-th sum and maximum belong to.
  __device__ __forceinline__ int row(int i) const {
    return rank_ / kWarp * kTiles * 16 + i / 2 * 16 + i % 2 * 8 + lane() / 4;
  }

  // One lane of those that hold the sum of row(i).
  __device__ __forceinline__ bool owns(int) const { return lane() % 4 == 0; }

  // Starts copying the queries; attend() waits for them.
  template <class F>
  __device__ __forceinline__ void load_queries(const Operand<T>& q, int64_t channels, F row_at) {
    copy_rows<kThreads>(q_, kRows, rank_, q, channels, row_at);
  }

  // Over keys `first` to `last`. seen(row): the keys before this one count for a row; before
  // `unmasked`, all do for all rows. active_rows: of the block; a warp past them only copies.
  template <class F>
  __device__ __forceinline__ void attend(const KeyRows<T>& keys, int64_t first, int64_t last,
                                         int64_t unmasked, int active_rows, float scale, F seen) {
    reset();
    const bool active = rank_ / kWarp * kTiles * 16 < active_rows;
    const float scale_2 = fabsf(scale) * kLog2E;
    if (first < last) copy_keys(k_, keys.k, keys.k_first, keys.channels, first, last);
    cp_async_commit();
#pragma unroll 1
    for (int64_t key = first; key < last; key += kKeys) {
      cp_async_wait<0>();
      sync();
      copy_keys(v_, keys.v, keys.v_first, keys.channels, key, last);
      cp_async_commit();
      float s[kTiles][kKeys / 8][4];
      if (active) {
        scores(s);
        if (scale < 0) negate(s);
        if (key + kKeys <= unmasked) {
          soften<false>(s, scale_2, key, seen);
        } else {
          soften<true>(s, scale_2, key, seen);
        }
      }
      cp_async_wait<0>();
      sync();
      if (key + kKeys < last) {
        copy_keys(k_, keys.k, keys.k_first, keys.channels, key + kKeys, last);
      }
      cp_async_commit();
      if (active) add_values(s);
    }
    cp_async_wait<0>();
    if (first >= last) sync();  // store() takes over the memory that the queries were copied to
    sum_quads();
  }

  // Maxima are of scaled scores, for powers of 2; -inf where a row has seen nothing.
  __device__ __forceinline__ float maximum(int i) const { return max_[i]; }
  __device__ __forceinline__ float sum(int i) const { return sum_[i]; }

  // Multiplies the outputs of this thread's i-th row by factor(i).
  template <class F>
  __device__ __forceinline__ void scale_rows(F factor) {
#pragma unroll
    for (int i = 0; i < kRowsAThread; ++i) {
      const float by = factor(i);
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
        o_[i / 2][n][i % 2 * 2] *= by;
        o_[i / 2][n][i % 2 * 2 + 1] *= by;
      }
    }
  }

  // visit(index, value&) for every output of the thread.
  template <class F>
  __device__ __forceinline__ void each_output(F visit) {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) visit((t * (kDim / 8) + n) * 4 + e, o_[t][n][e]);
      }
    }
  }

  // visit(row, channel, pair) for every two neighbouring outputs of the thread.
  template <class F>
  __device__ __forceinline__ void each_vector(F visit) {
#pragma unroll
    for (int i = 0; i < kRowsAThread; ++i) {
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
        const float* pair = o_[i / 2][n] + i % 2 * 2;
        visit(row(i), n * 8 + lane() % 4 * 2, Vec<float, 2>{{pair[0], pair[1]}});
      }
    }
  }

  // Writes the rows, each at offset row_at(row) of `to` unless that is -1; the warp's part of the
  // queries' memory makes 16-byte stores of them where the target is `wide`.
  template <class F>
  __device__ __forceinline__ void store(Global<T> to, int64_t channels, bool wide, F row_at) {
    sync_warp();
    each_vector([&](int row, int channel, const Vec<float, 2>& pair) {
      const Vec<T, 2> rounded{{from_float<T>(pair[0]), from_float<T>(pair[1])}};
      q_.at(row, channel / 8).store(channel % 8, rounded);
    });
    sync_warp();
    constexpr int kChunks = kDim / 8;
    const int first = rank_ / kWarp * kTiles * 16;
    for (int i = lane(); i < kTiles * 16 * kChunks; i += kWarp) {
      const int row = first + i / kChunks, chunk = i % kChunks;
      const Vec<T, 8> values = q_.at(row, chunk).template load<8>(0);
      const int64_t offset = row_at(row);
      if (offset < 0 || chunk * 8 >= channels) continue;
      if (wide) {
        to.store(offset + chunk * 8, values);
      } else {
#pragma unroll
        for (int e = 0; e < 8; ++e) {
          if (chunk * 8 + e < channels) to.store(offset + chunk * 8 + e, values[e]);
        }
      }
    }
  }

 private:
  __device__ __forceinline__ void sync() const {
    if constexpr (kTeam == 1) {
      sync_warp();
    } else {
      sync_block();
    }
  }

  __device__ __forceinline__ void reset() {
    each_output([](int, float& o) { o = 0.0f; });
#pragma unroll
    for (int i = 0; i < kRowsAThread; ++i) max_[i] = kMinusInfinity, sum_[i] = 0.0f;
  }

  __device__ __forceinline__ void copy_keys(const SharedRows<T, kDim>& to, const Operand<T>& from,
                                            int64_t origin, int64_t channels, int64_t key,
                                            int64_t last) const {
    copy_rows<kThreads>(to, kKeys, rank_, from, channels, [&](int i) {
      return key + i < last ? origin + (key + i) * from.token : -1;
    });
  }

  __device__ __forceinline__ void scores(float (&s)[kTiles][kKeys / 8][4]) const {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) s[t][n][e] = 0.0f;
      }
    }
    const int l = lane(), first = rank_ / kWarp * kTiles * 16;
#pragma unroll
    for (int c = 0; c < kDim / 16; ++c) {
      uint32_t q[kTiles][4];
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        ldmatrix(q[t], q_.at(first + t * 16 + l % 16, 2 * c + l / 16));
      }
#pragma unroll
      for (int n = 0; n < kKeys / 16; ++n) {
        uint32_t k[4];
        ldmatrix(k, k_.at(n * 16 + l / 16 * 8 + l % 8, 2 * c + l / 8 % 2));
        const uint32_t low[2] = {k[0], k[1]}, high[2] = {k[2], k[3]};
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
          mma_m16n8k16<T>(s[t][2 * n], q[t], low);
          mma_m16n8k16<T>(s[t][2 * n + 1], q[t], high);
        }
      }
    }
  }

  __device__ __forceinline__ static void negate(float (&s)[kTiles][kKeys / 8][4]) {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) s[t][n][e] = -s[t][n][e];
      }
    }
  }

  // Scores to unnormalised probabilities; a masked one is 0 whatever its key holds.
  template <bool kMasked, class F>
  __device__ __forceinline__ void soften(float (&s)[kTiles][kKeys / 8][4], float scale_2,
                                         int64_t key, F seen) {
#pragma unroll
    for (int i = 0; i < kRowsAThread; ++i) {
      float (&tile)[kKeys / 8][4] = s[i / 2];
      // The columns of the block, of this lane's first one, that count.
      int64_t limit = 0;
      if constexpr (kMasked) limit = seen(row(i)) - key - lane() % 4 * 2;
      float top = kMinusInfinity;
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          if (!kMasked || n * 8 + e < limit) top = fmaxf(top, tile[n][i % 2 * 2 + e]);
        }
      }
      top = fmaxf(top, shuffle_xor(top, 1));
      top = fmaxf(top, shuffle_xor(top, 2)) * scale_2;
      const float next = fmaxf(max_[i], top);  // of a NaN and a number, the number
      const float base = next == kMinusInfinity ? 0.0f : next;
      const float keep = exp2_approximate(max_[i] - base);
      max_[i] = next;
      float total = 0.0f;
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& value = tile[n][i % 2 * 2 + e];
          value = exp2_approximate(fmaf(value, scale_2, -base));
          if (kMasked && n * 8 + e >= limit) value = 0.0f;
          total += value;
        }
      }
      sum_[i] = sum_[i] * keep + total;
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
        o_[i / 2][n][i % 2 * 2] *= keep;
        o_[i / 2][n][i % 2 * 2 + 1] *= keep;
      }
    }
  }

  __device__ __forceinline__ void add_values(const float (&s)[kTiles][kKeys / 8][4]) {
    const int l = lane();
#pragma unroll
    for (int n = 0; n < kKeys / 16; ++n) {
      uint32_t p[kTiles][4];
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
#pragma unroll
        for (int r = 0; r < 4; ++r) {
          const float* pair = s[t][2 * n + r / 2] + r % 2 * 2;
          p[t][r] = packed_pair<T>(pair[0], pair[1]);
        }
      }
#pragma unroll
      for (int c = 0; c < kDim / 16; ++c) {
        uint32_t v[4];
        ldmatrix_transposed(v, v_.at(n * 16 + l % 16, 2 * c + l / 16));
        const uint32_t low[2] = {v[0], v[1]}, high[2] = {v[2], v[3]};
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
          mma_m16n8k16<T>(o_[t][2 * c], p[t], low);
          mma_m16n8k16<T>(o_[t][2 * c + 1], p[t], high);
        }
      }
    }
  }

  // Each lane has summed its own columns; the four of a row add up.
  __device__ __forceinline__ void sum_quads() {
#pragma unroll
    for (int i = 0; i < kRowsAThread; ++i) {
      sum_[i] += shuffle_xor(sum_[i], 1);
      sum_[i] += shuffle_xor(sum_[i], 2);
    }
  }

  SharedRows<T, kDim> q_, k_, v_;
  int rank_;
  float o_[kTiles][kDim / 8][4];
  float max_[kRowsAThread], sum_[kRowsAThread];
};

}  // namespace flashvl::cuda
