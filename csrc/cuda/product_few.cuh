// A product of 1 to 8 rows, normalised on their way in: bf16 and fp16, with weights of any format.
//
// Bound by the bytes of w, read once, past the first-level cache. The rows of w are the 16 rows of
// the tensor cores' product and the rows of x its 8 columns, so dequantised words become operands
// as they are: which columns of a row a lane multiplies does not matter as long as w and x agree,
// and so it takes what 16 neighbouring bytes hold. A warp reads 64 neighbouring bytes of each of 16
// rows at a time, the warps of a block 512; every thread keeps two batches of loads under way.
#pragma once

#include "product_norm.cuh"
#include "product_weights.cuh"
#include "ptx/mma.cuh"

namespace flashvl::cuda {

template <class T, class W>
class FewRows {
 public:
  static constexpr int kWarps = 8, kThreads = kWarps * kWarp;
  static constexpr int kBlocks = 2;  // on a multiprocessor at once, at least
  static constexpr int kRows = 8, kColumns = 16;
  static constexpr int kTileStride = 20;  // eight rows at one column in banks of their own
  static constexpr int kLaneColumns = 4 * W::kWordColumns;  // of one load
  static constexpr int kChunk = 4 * kLaneColumns;           // of one load of a warp

  __device__ __forceinline__ explicit FewRows(const ProductArgs<T>& args)
      : args_(args), place_(tile_place<kRows, kColumns>(args)) {
    const int group = lane() / 4;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int64_t row = weight_row(args, place_.first_column + group + 8 * i);
      w_at_[i] = row >= 0 ? row * args.w_stride : -1;
    }
    x_at_ = group < args.rows ? args.x_rows.offset(group) / 2 : -1;
    const int64_t first = blockIdx.y * args.part;
    last_ = min(first + args.part, args.padded);
    column_ = first + threadIdx.x / kWarp * kChunk;
  }

  __device__ __forceinline__ void run() {
    Batch now, next;
    load(now, column_);
    if (args_.norm_weight) find_statistics();
    if constexpr (W::kGroup > 0) load_scales();
    constexpr int64_t kStride = static_cast<int64_t>(kWarps) * kAhead * kChunk;
#pragma unroll 1
    for (int64_t column = column_; column < last_; column += 2 * kStride) {
      load(next, column + kStride);
      multiply(now, column);
      load(now, column + 2 * kStride);
      multiply(next, column + kStride);
    }
    add_warps();
    finish_tile<kRows, kColumns, kTileStride>(args_, place_, {dynamic_shared<float>().address});
  }

 private:
  // Loads of a batch from each of two rows of w. Two batches of 64 bytes a thread, two blocks of
  // 256: 64 KiB a multiprocessor, where an H100 needs 18 (3.35 TB/s, 700 ns). Packed columns need
  // more of x, so of them there is one load a batch, 32 KiB. Beside int4, two batches of x would
  // take the registers of the second block: it is loaded when w has come, from the cache.
  static constexpr int kAhead = W::kWordColumns == 2 ? 2 : 1;
  static constexpr int kXLoads = kLaneColumns / 8;
  static constexpr bool kXAhead = kXLoads < 4;
  // Loads that exchange() takes at once.
  static constexpr int kPartLoads = kXLoads == 1 ? 1 : 2, kParts = kXLoads / kPartLoads;

  struct Batch {
    Vec<uint32_t, 4> w[kAhead][2], x[kAhead][kXLoads];
  };

  // The first of this lane's columns in the a-th chunk of a batch.
  __device__ __forceinline__ static int64_t lane_column(int64_t column, int a) {
    return column + static_cast<int64_t>(a) * kWarps * kChunk + lane() % 4 * kLaneColumns;
  }

  // The first of the columns of x that this lane loads as its v-th 16 bytes. Two neighbouring lanes
  // take both halves of a sector of 32 bytes at once; exchange() gives each its own columns.
  __device__ __forceinline__ static int64_t loaded_column(int64_t column, int a, int v) {
    if constexpr (kXLoads == 1) return lane_column(column, a);
    const int odd = lane() % 2;
    return lane_column(column, a) - odd * kLaneColumns + (2 * v + odd) * 8;
  }

  // From the columns that this lane loaded to 16 of those that its load of w holds.
  __device__ __forceinline__ static void exchange(Vec<uint32_t, 4> (&x)[kPartLoads]) {
    if constexpr (kPartLoads == 2) {
      const bool odd = lane() % 2 == 1;
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const uint32_t other = shuffle_xor(odd ? x[0][e] : x[1][e], 1);
        x[0][e] = odd ? other : x[0][e];
        x[1][e] = odd ? x[1][e] : other;
      }
    }
  }

  __device__ __forceinline__ Vec<uint32_t, 4> load_x(int64_t column) const {
    if (x_at_ < 0 || column >= last_) return Vec<uint32_t, 4>{};
    const Global<const uint32_t> x{reinterpret_cast<const uint32_t*>(args_.x.address)};
    return x.template load<4>(x_at_ + column / 2);
  }

  __device__ __forceinline__ void load(Batch& batch, int64_t column) const {
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      const int64_t c = lane_column(column, a), word = c / W::kWordColumns;
      const bool inside = c < last_ && word < args_.w_words;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        batch.w[a][i] = Vec<uint32_t, 4>{};
        if (inside && w_at_[i] >= 0) {
          batch.w[a][i] = args_.w.template load_once<4>(w_at_[i] + word);
        }
      }
      if constexpr (kXAhead) {
#pragma unroll
        for (int v = 0; v < kXLoads; ++v) batch.x[a][v] = load_x(loaded_column(column, a, v));
      }
    }
  }

  // A warp a row; every block for itself, while its first weights are on their way.
  __device__ __forceinline__ void find_statistics() {
    FLASHVL_SHARED(float, found, kRows * 4);
    const int warp = threadIdx.x / kWarp;
    if (warp < args_.rows) {
      const int64_t from = args_.x_rows.offset(warp);
      const auto each = [&](auto visit) {
#pragma unroll 4
        for (int64_t c = lane() * 8; c < args_.padded; c += kWarp * 8) {
          const Vec<T, 8> values = args_.x.template load<8>(from + c);
#pragma unroll
          for (int e = 0; e < 8; ++e) {
            if (c + e < args_.columns) visit(to_float(values[e]));
          }
        }
      };
      const auto sum = [](float value) { return warp_sum(value); };
      const bool centred = static_cast<bool>(args_.norm_bias);
      const Statistics of = statistics_of(args_.columns, args_.eps, centred, each, sum);
      if (lane() == 0) found.store(warp * 4, Vec<float, 4>{{of.scale, of.mean, of.slip, 0.0f}});
    }
    sync_block();
    if (x_at_ >= 0) {
      const Vec<float, 4> of = found.load<4>(lane() / 4 * 4);
      statistics_ = {of[0], of[1], of[2]};
    }
  }

  // The scales of int4 of this block's part, side by side in global memory, where whole sectors
  // are read.
  __device__ __forceinline__ void load_scales() {
    const int64_t groups = ceil_div(args_.columns, W::kGroup);
    const int count = static_cast<int>(groups_here());
    for (int i = threadIdx.x; i < kColumns * count; i += kThreads) {
      const int64_t row = weight_row(args_, place_.first_column + i / count);
      const int64_t group = first_group() + i % count;
      const float scale =
          row >= 0 && group < groups ? args_.scale.load(row * groups + group) : 0.0f;
      scales().store(i / count * scale_stride() + i % count, scale);
    }
    sync_block();
  }

  __device__ __forceinline__ static Shared<float> scales() {
    return dynamic_shared<float>() + (kRows * kTileStride + kWarps * kRows * kColumns);
  }
  __device__ __forceinline__ int64_t first_group() const {
    return blockIdx.y * args_.part / W::kGroup;
  }
  __device__ __forceinline__ int64_t groups_here() const {
    return ceil_div(min(args_.part, args_.padded), W::kGroup);
  }
  // Odd, so that eight rows at one group lie in different banks.
  __device__ __forceinline__ int64_t scale_stride() const { return groups_here() | 1; }

  __device__ __forceinline__ void normalise(Vec<uint32_t, 4>& x, int64_t column) const {
    const Vec<T, 8> weight = args_.norm_weight.template load<8>(column);
    Vec<T, 8> bias{};
    const bool centred = static_cast<bool>(args_.norm_bias);
    if (centred) bias = args_.norm_bias.template load<8>(column);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float low = normalised<T>(low_of<T>(x[i]), statistics_, to_float(weight[2 * i]),
                                      to_float(bias[2 * i]), centred);
      const float high = normalised<T>(high_of<T>(x[i]), statistics_, to_float(weight[2 * i + 1]),
                                       to_float(bias[2 * i + 1]), centred);
      x[i] = operand_pair<T>(low, high);
    }
  }

  // The `part`-th 8 or 16 columns of x of this lane's in a chunk, normalised.
  __device__ __forceinline__ void take_x(const Batch& batch, int64_t column, int a, int part,
                                         Vec<uint32_t, 4> (&x)[kPartLoads]) const {
#pragma unroll
    for (int i = 0; i < kPartLoads; ++i) {
      const int v = part + i * kParts;
      const int64_t c = loaded_column(column, a, v);
      if constexpr (kXAhead) {
        x[i] = batch.x[a][v];
      } else {
        x[i] = load_x(c);
      }
      if (args_.norm_weight && x_at_ >= 0 && c < last_) normalise(x[i], c);
    }
    exchange(x);
  }

  __device__ __forceinline__ void multiply(Batch& batch, int64_t column) {
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      float group[4] = {};
      float (&sums)[4] = W::kGroup > 0 ? group : sums_;
      constexpr int kPairs = W::kWordColumns / 2;  // of a word
      // Not unrolled: the loads of all parts at once would spill.
#pragma unroll 1
      for (int part = 0; part < kParts; ++part) {
        Vec<uint32_t, 4> x[kPartLoads];
        take_x(batch, column, a, part, x);
#pragma unroll
        for (int k = 0; k < 2 * kPartLoads; ++k) {
          uint32_t w[4];
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const int pair = k * 2 + i / 2;
            w[i] = columns_of<T>(W{}, batch.w[a][i % 2][pair / kPairs], pair % kPairs);
          }
          const uint32_t operand[2] = {x[k / 2][k % 2 * 2], x[k / 2][k % 2 * 2 + 1]};
          mma_m16n8k16<T>(sums, w, operand);
        }
        if constexpr (kParts > 1) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            batch.w[a][i][0] = batch.w[a][i][2];
            batch.w[a][i][1] = batch.w[a][i][3];
          }
        }
      }
      if constexpr (W::kGroup > 0) {
        const int64_t chunk = column + static_cast<int64_t>(a) * kWarps * kChunk;
        if (chunk >= last_) continue;
        const int64_t at = chunk / W::kGroup - first_group();
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          sums_[e] += group[e] * scales().load((lane() / 4 + e / 2 * 8) * scale_stride() + at);
        }
      }
    }
  }

  // The sums of all warps, in their order, into the tile that finish_tile() reads. A warp leaves
  // its own by columns, where two rows are neighbours in its fragment.
  __device__ __forceinline__ void add_warps() const {
    constexpr int kSize = kRows * kColumns;
    const Shared<float> tile = dynamic_shared<float>(), parts = tile + kRows * kTileStride;
    const int warp = threadIdx.x / kWarp;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const Vec<float, 2> pair{{sums_[2 * i], sums_[2 * i + 1]}};
      parts.store(warp * kSize + (lane() / 4 + 8 * i) * kRows + lane() % 4 * 2, pair);
    }
    sync_block();
    const int row = threadIdx.x % kRows, column = threadIdx.x / kRows;
    if (column < kColumns) {
      float total = 0.0f;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        total += parts.load(w * kSize + static_cast<int>(threadIdx.x));
      }
      if constexpr (W::kWordColumns == 4) {
        const int64_t w_row = weight_row(args_, place_.first_column + column);
        total *= w_row >= 0 ? args_.scale.load(w_row) : 0.0f;
      }
      tile.store(row * kTileStride + column, total);
    }
    sync_block();
  }

  const ProductArgs<T>& args_;
  TilePlace place_;
  int64_t w_at_[2], x_at_;  // in words; -1 where there is no row
  int64_t column_, last_;
  Statistics statistics_{};
  float sums_[4] = {};
};

// The grid is (16 columns, splits of the sum).
template <class T, class W>
__global__ void __launch_bounds__(FewRows<T, W>::kThreads, FewRows<T, W>::kBlocks)
    product_few_kernel(ProductArgs<T> args) {
  FewRows<T, W>(args).run();
}

}  // namespace flashvl::cuda
