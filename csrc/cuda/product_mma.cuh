// A product of many rows in tensor cores: bf16 and fp16, with weights of any format.
//
// Bound by FLOPs: 2 a row, unit and column; for fewer than some 300 rows by the bytes of w. A block
// has a tile of 64 or 128 rows and 128 columns, a warp 64 x 32 of it. Steps of 32 columns of the
// operands come through a ring of four stages of shared memory, three of them on their way, with
// one barrier a step (the multistage pipeline of CUTLASS). Integer weights stay packed in shared
// memory and become operands in registers: a group of int4 with its scale, as the reference rounds
// it; rows of int8 as they are, the scale multiplying the sum. A step of int4 has 16 bytes a row,
// half a sector of memory, so two are copied at once; its scales come eight groups at a time.
#pragma once

#include "product.cuh"
#include "product_stage.cuh"
#include "product_weights.cuh"
#include "ptx/cp_async.cuh"
#include "ptx/ldmatrix.cuh"
#include "ptx/mma.cuh"

namespace flashvl::cuda {

// kRowWarps: warps along the rows of the tile, of 64 rows each.
template <class T, class W, int kRowWarps>
class MmaProduct {
 public:
  static constexpr int kUnitWarps = 4, kThreads = kRowWarps * kUnitWarps * kWarp;
  static constexpr int kRows = kRowWarps * 64, kColumns = kUnitWarps * 32;
  static constexpr int kStep = 32, kStages = 4;
  // fp32 sums of the tile: neighbouring rows of a fragment in banks of their own.
  static constexpr int kTileStride = kColumns + 8;

  __device__ __forceinline__ explicit MmaProduct(const ProductArgs<T>& args)
      : args_(args), place_(tile_place<kRows, kColumns>(args)), x_(address_of(args.x)) {
#pragma unroll
    for (int i = 0; i < kXCopies; ++i) {
      const int64_t row = place_.first_row + (threadIdx.x + i * kThreads) / kXChunks;
      x_at_[i] = row < args.rows ? args.x_rows.offset(row) / 2 : -1;
    }
#pragma unroll
    for (int i = 0; i < kWCopies; ++i) {
      const int64_t column = place_.first_column + (threadIdx.x + i * kThreads) / kWChunks;
      const int64_t row = weight_row(args, column);
      w_at_[i] = row >= 0 ? row * args.w_stride : -1;
    }
    first_ = blockIdx.y * args.part;
    last_ = min(first_ + args.part, args.padded);
  }

  __device__ __forceinline__ void run() {
    const int steps = first_ < last_ ? static_cast<int>(ceil_div(last_ - first_, kStep)) : 0;
    clear();
#pragma unroll 1
    for (int s = 0; s < kStages - 1; ++s) {
      if (s < steps) copy_step(s);
      cp_async_commit();
    }
#pragma unroll 1
    for (int s = 0; s < steps; ++s) {
      cp_async_wait<kStages - 2>();
      sync_block();  // the step is there, and the stage before it has been read by all
      if (s + kStages - 1 < steps) copy_step(s + kStages - 1);
      cp_async_commit();
      multiply(s);
    }
    cp_async_wait<0>();
    sync_block();  // the ring makes room for the sums
    store_sums();
    sync_block();
    finish_tile<kRows, kColumns, kTileStride>(args_, place_, {tile().address});
  }

 private:
  static constexpr int kXChunks = kStep * 2 / 16, kXCopies = kRows * kXChunks / kThreads;
  // Steps of w copied at once. Two of them are read while the next two are on their way and those
  // after them begin: three places.
  static constexpr int kWSteps = W::kWordColumns == 8 ? 2 : 1;
  static constexpr int kWStages = kWSteps == 1 ? kStages : 3;
  static constexpr int kWChunks = kWSteps * kStep / W::kWordColumns / 4;
  static constexpr int kWCopies = (kColumns * kWChunks + kThreads - 1) / kThreads;
  static constexpr int kXWords = kRows * kXChunks * 4, kWWords = kColumns * kWChunks * 4;
  // Groups whose scales are copied at once, a sector of them a row: those being read, and the next.
  // The stride gives the eight groups of four rows, and eight rows of a group, banks of their own.
  static constexpr int kGroups = 8, kGroupSteps = W::kGroup / kStep;
  static constexpr int kScaleStride = kColumns + 4;

  __device__ __forceinline__ static Global<const uint32_t> address_of(Global<const T> x) {
    return {reinterpret_cast<const uint32_t*>(x.address)};
  }
  // Where the columns of step `s` lie: of x, of w, and the scales of their group.
  __device__ __forceinline__ static StageRows<kXChunks> x_stage(int s) {
    return {dynamic_shared<uint32_t>() + s % kStages * kXWords};
  }
  __device__ __forceinline__ static StageRows<kWChunks> w_stage(int s) {
    return {dynamic_shared<uint32_t>() + (kStages * kXWords + s / kWSteps % kWStages * kWWords)};
  }
  __device__ __forceinline__ static Shared<float> scales(int s) {
    constexpr int kFirst = kStages * kXWords + kWStages * kWWords;
    return dynamic_shared<float>() + (kFirst + s / kGroupSteps % (2 * kGroups) * kScaleStride);
  }
  __device__ __forceinline__ static Shared<float> tile() { return dynamic_shared<float>(); }

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int m = 0; m < 4; ++m) {
#pragma unroll
      for (int n = 0; n < 4; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) sums_[m][n][e] = 0.0f;
      }
    }
  }

  // The columns of step `s`; zeros where there are none.
  __device__ __forceinline__ void copy_step(int s) const {
    const int64_t column = first_ + static_cast<int64_t>(s) * kStep;
    const StageRows<kXChunks> x = x_stage(s);
#pragma unroll
    for (int i = 0; i < kXCopies; ++i) {
      const int index = threadIdx.x + i * kThreads, chunk = index % kXChunks;
      const int64_t word = column / 2 + chunk * 4;
      const bool there = x_at_[i] >= 0 && word * 2 < args_.padded;
      cp_async_16(x.at(index / kXChunks, chunk), x_ + (there ? x_at_[i] + word : 0), there);
    }
    if (kWSteps > 1 && s % kWSteps != 0) return;
    const StageRows<kWChunks> w = w_stage(s);
#pragma unroll
    for (int i = 0; i < kWCopies; ++i) {
      const int index = threadIdx.x + i * kThreads, chunk = index % kWChunks;
      if (kColumns * kWChunks % kThreads != 0 && index >= kColumns * kWChunks) break;
      const int64_t word = column / W::kWordColumns + chunk * 4;
      const bool there = w_at_[i] >= 0 && word < args_.w_words;
      cp_async_16(w.at(index / kWChunks, chunk), args_.w + (there ? w_at_[i] + word : 0), there);
    }
    if constexpr (W::kGroup > 0) {
      if (s % (kGroups * kGroupSteps) == 0) copy_scales(s);
    }
  }

  // Of the groups from that of step `s` on; neighbouring lanes take neighbouring groups of a row.
  __device__ __forceinline__ void copy_scales(int s) const {
    const int64_t groups = ceil_div(args_.columns, W::kGroup);
    const int64_t end = ceil_div(min(last_, args_.columns), W::kGroup);
    const int g = threadIdx.x % kGroups;
    const int64_t group = first_ / W::kGroup + s / kGroupSteps + g;
    const Shared<float> to = scales(s) + g * kScaleStride;
#pragma unroll 1
    for (int column = threadIdx.x / kGroups; column < kColumns; column += kThreads / kGroups) {
      const int64_t row = weight_row(args_, place_.first_column + column);
      const bool there = row >= 0 && group < end;
      cp_async_small<4>(to + column, args_.scale + (there ? row * groups + group : 0), there);
    }
  }

  // Operands of 32 columns of the tile at columns 16 half of the step: w[2 n], w[2 n + 1] for the
  // n-th eight.
  __device__ __forceinline__ void load_weights(int s, int half, uint32_t (&w)[8]) const {
    const StageRows<kWChunks> rows = w_stage(s);
    const int l = lane(), first = threadIdx.x / kWarp % kUnitWarps * 32;
    if constexpr (W::kWordColumns == 2) {
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        uint32_t r[4];
        ldmatrix(r, rows.at(first + n * 16 + l / 16 * 8 + l % 8, 2 * half + l / 8 % 2));
#pragma unroll
        for (int e = 0; e < 4; ++e) w[4 * n + e] = r[e];
      }
    } else {
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const int row = first + n * 8 + l / 4, pair = l % 4;
        float scale = 1.0f;
        if constexpr (W::kGroup > 0) scale = scales(s).load(row);
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          // Columns 2 pair and the next of eight: of half a chunk of int8, of a word of int4.
          const int eight = s % kWSteps * (kStep / 8) + 2 * half + r;
          const int word = eight * (8 / W::kWordColumns) + pair * 2 / W::kWordColumns;
          const uint32_t bits = rows.at(row, word / 4).load(word % 4);
          const int column = pair * 2 % W::kWordColumns;
          const float low = column_of(W{}, bits, column), high = column_of(W{}, bits, column + 1);
          w[2 * n + r] = operand_pair<T>(low * scale, high * scale);
        }
      }
    }
  }

  __device__ __forceinline__ void multiply(int s) {
    const StageRows<kXChunks> rows = x_stage(s);
    const int l = lane(), first = threadIdx.x / kWarp / kUnitWarps * 64;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t x[4][4], w[8];
#pragma unroll
      for (int m = 0; m < 4; ++m) {
        ldmatrix(x[m], rows.at(first + m * 16 + l % 16, 2 * half + l / 16));
      }
      load_weights(s, half, w);
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const uint32_t operand[2] = {w[2 * n], w[2 * n + 1]};
#pragma unroll
        for (int m = 0; m < 4; ++m) mma_m16n8k16<T>(sums_[m][n], x[m], operand);
      }
    }
  }

  __device__ __forceinline__ void store_sums() const {
    const int l = lane(), warp = threadIdx.x / kWarp;
    const int row = warp / kUnitWarps * 64 + l / 4, column = warp % kUnitWarps * 32 + l % 4 * 2;
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const Vec<float, 2> scale = scales_of(column + n * 8);
#pragma unroll
      for (int m = 0; m < 4; ++m) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const float* sums = sums_[m][n] + 2 * i;
          const Vec<float, 2> pair{{sums[0] * scale[0], sums[1] * scale[1]}};
          tile().store((row + m * 16 + i * 8) * kTileStride + column + n * 8, pair);
        }
      }
    }
  }

  // What multiplies the sums of two columns of the tile.
  __device__ __forceinline__ Vec<float, 2> scales_of(int column) const {
    Vec<float, 2> scale{{1.0f, 1.0f}};
    if constexpr (W::kWordColumns == 4) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int64_t row = weight_row(args_, place_.first_column + column + e);
        if (row >= 0) scale[e] = args_.scale.load(row);
      }
    }
    return scale;
  }

  const ProductArgs<T>& args_;
  TilePlace place_;
  Global<const uint32_t> x_;
  int64_t x_at_[kXCopies], w_at_[kWCopies];  // in words; -1 where there is no row
  int64_t first_, last_;                     // columns of this block's part
  float sums_[4][4][4];
};

// The grid is (tiles, splits of the sum).
template <class T, class W, int kRowWarps>
__global__ void __launch_bounds__(MmaProduct<T, W, kRowWarps>::kThreads)
    product_mma_kernel(ProductArgs<T> args) {
  MmaProduct<T, W, kRowWarps>(args).run();
}

}  // namespace flashvl::cuda
