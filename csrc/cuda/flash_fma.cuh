// Attention of a block of queries over a range of keys in fp32, without tensor cores: their tf32
// would not meet the tolerance.
//
// The recurrence and the two barriers a block of keys are those of flash_mma.cuh. Eight lanes
// share up to four rows: of the scores, each has every eighth key, of the outputs, every eighth
// vector of channels, so that one 16-byte load of a key or value feeds as many FMAs as there are
// rows. Bound by FMAs, 2 a pair and channel, for many queries.
#pragma once

#include "attention_rows.cuh"
#include "ptx/sync.cuh"

namespace flashvl::cuda {

// kEach: rows of eight lanes. One team of four warps.
template <int kDim, int kEach, int kKeys>
class FlashFma {
 public:
  static constexpr int kThreads = 128;
  static constexpr int kRows = kEach * kThreads / 8;
  static constexpr int kRowsAThread = kEach;
  // Probabilities pass from the lanes that computed them through rows of their own.
  static constexpr int kWeightStride = kKeys + 8;
  static constexpr int kQueryElements = kRows * (SharedRows<float, kDim>::kStride + kWeightStride);
  static constexpr int kKeyElements = 2 * kKeys * SharedRows<float, kDim>::kStride;
  static constexpr int kOutputs = kEach * kDim / 8;

  __device__ __forceinline__ FlashFma(Shared<float> queries, Shared<float> keys, int rank)
      : q_{queries},
        k_{keys},
        v_{keys + kKeyElements / 2},
        weights_(queries + kRows * SharedRows<float, kDim>::kStride),
        rank_(rank) {}

  __device__ __forceinline__ int row(int i) const { return rank_ / 8 + i * (kThreads / 8); }
  __device__ __forceinline__ bool owns(int) const { return rank_ % 8 == 0; }

  template <class F>
  __device__ __forceinline__ void load_queries(const Operand<float>& q, int64_t channels,
                                               F row_at) {
    copy_rows<kThreads>(q_, kRows, rank_, q, channels, row_at);
  }

  template <class F>
  __device__ __forceinline__ void attend(const KeyRows<float>& keys, int64_t first, int64_t last,
                                         int64_t, int, float scale, F seen) {
    each_output([](int, float& o) { o = 0.0f; });
#pragma unroll
    for (int i = 0; i < kEach; ++i) max_[i] = kMinusInfinity, sum_[i] = 0.0f;
    if (first < last) copy_keys(k_, keys.k, keys.k_first, keys.channels, first, last);
    cp_async_commit();
#pragma unroll 1
    for (int64_t key = first; key < last; key += kKeys) {
      cp_async_wait<0>();
      sync_block();
      copy_keys(v_, keys.v, keys.v_first, keys.channels, key, last);
      cp_async_commit();
      float s[kEach][kKeys / 8];
      scores(s);
      soften(s, scale, key, seen);
      cp_async_wait<0>();
      sync_block();
      if (key + kKeys < last) {
        copy_keys(k_, keys.k, keys.k_first, keys.channels, key + kKeys, last);
      }
      cp_async_commit();
      add_values();
    }
    cp_async_wait<0>();
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
#pragma unroll
      for (int by = 1; by < 8; by *= 2) sum_[i] += shuffle_xor(sum_[i], by);
    }
  }

  __device__ __forceinline__ float maximum(int i) const { return max_[i]; }
  __device__ __forceinline__ float sum(int i) const { return sum_[i]; }

  template <class F>
  __device__ __forceinline__ void scale_rows(F factor) {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const float by = factor(i);
#pragma unroll
      for (int n = 0; n < kDim / 32; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) o_[i][n][e] *= by;
      }
    }
  }

  template <class F>
  __device__ __forceinline__ void each_output(F visit) {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
#pragma unroll
      for (int n = 0; n < kDim / 32; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) visit((i * (kDim / 32) + n) * 4 + e, o_[i][n][e]);
      }
    }
  }

  template <class F>
  __device__ __forceinline__ void each_vector(F visit) {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
#pragma unroll
      for (int n = 0; n < kDim / 32; ++n) visit(row(i), n * 32 + rank_ % 8 * 4, o_[i][n]);
    }
  }

  template <class F>
  __device__ __forceinline__ void store(Global<float> to, int64_t channels, bool wide, F row_at) {
    each_vector([&](int row, int channel, const Vec<float, 4>& values) {
      const int64_t offset = row_at(row);
      if (offset < 0 || channel >= channels) return;
      if (wide) {
        to.store(offset + channel, values);
      } else {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          if (channel + e < channels) to.store(offset + channel + e, values[e]);
        }
      }
    });
  }

 private:
  __device__ __forceinline__ void copy_keys(const SharedRows<float, kDim>& to,
                                            const Operand<float>& from, int64_t origin,
                                            int64_t channels, int64_t key, int64_t last) const {
    copy_rows<kThreads>(to, kKeys, rank_, from, channels, [&](int i) {
      return key + i < last ? origin + (key + i) * from.token : -1;
    });
  }

  __device__ __forceinline__ void scores(float (&s)[kEach][kKeys / 8]) const {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) s[i][n] = 0.0f;
    }
#pragma unroll 1  // two steps at a time spill on sm_120
    for (int c = 0; c < kDim / 4; ++c) {
      Vec<float, 4> q[kEach];
#pragma unroll
      for (int i = 0; i < kEach; ++i) q[i] = q_.at(row(i), c).template load<4>(0);
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
        const Vec<float, 4> k = k_.at(n * 8 + rank_ % 8, c).template load<4>(0);
#pragma unroll
        for (int i = 0; i < kEach; ++i) {
#pragma unroll
          for (int e = 0; e < 4; ++e) s[i][n] = fmaf(q[i][e], k[e], s[i][n]);
        }
      }
    }
  }

  // As FlashMma::soften; the probabilities go to shared memory.
  template <class F>
  __device__ __forceinline__ void soften(float (&s)[kEach][kKeys / 8], float scale, int64_t key,
                                         F seen) {
    const float scale_2 = scale * kLog2E;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int64_t limit = seen(row(i)) - key - rank_ % 8;
      float top = kMinusInfinity;
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
        s[i][n] *= scale_2;
        if (n * 8 < limit) top = fmaxf(top, s[i][n]);
      }
#pragma unroll
      for (int by = 1; by < 8; by *= 2) top = fmaxf(top, shuffle_xor(top, by));
      const float next = fmaxf(max_[i], top);
      const float base = next == kMinusInfinity ? 0.0f : next;
      const float keep = exp2f(max_[i] - base);
      max_[i] = next;
      float total = 0.0f;
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
        const float weight = n * 8 < limit ? exp2f(s[i][n] - base) : 0.0f;
        weights_.store(row(i) * kWeightStride + n * 8 + rank_ % 8, weight);
        total += weight;
      }
      sum_[i] = sum_[i] * keep + total;
#pragma unroll
      for (int n = 0; n < kDim / 32; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) o_[i][n][e] *= keep;
      }
    }
  }

  __device__ __forceinline__ void add_values() {
#pragma unroll 1
    for (int key = 0; key < kKeys; key += 4) {
      Vec<float, 4> p[kEach];
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        p[i] = weights_.template load<4>(row(i) * kWeightStride + key);
      }
#pragma unroll
      for (int k = 0; k < 4; ++k) {
#pragma unroll
        for (int n = 0; n < kDim / 32; ++n) {
          const Vec<float, 4> v = v_.at(key + k, n * 8 + rank_ % 8).template load<4>(0);
#pragma unroll
          for (int i = 0; i < kEach; ++i) {
#pragma unroll
            for (int e = 0; e < 4; ++e) o_[i][n][e] = fmaf(p[i][k], v[e], o_[i][n][e]);
          }
        }
      }
    }
  }

  SharedRows<float, kDim> q_, k_, v_;
  Shared<float> weights_;
  int rank_;
  Vec<float, 4> o_[kEach][kDim / 32];
  float max_[kEach], sum_[kEach];
};

}  // namespace flashvl::cuda
