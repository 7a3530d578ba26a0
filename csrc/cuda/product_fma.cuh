// A product in fp32 by multiply-adds, with weights of any format.
//
// Bound by FLOPs: 2 a row, unit and column, on the plain cores; TF32 would err by more than PyTorch
// does. A block has a tile of 64 rows and 64 columns, a thread 2 x 8 of it; up to 8 rows, as in
// decoding, are a tile of their own, a thread 2 x 1, so that no warp is idle. Steps of 16 columns
// come through a ring of four stages of shared memory with one barrier a step. Each step is a sum
// of its own: one chain of additions along the whole row would err more than PyTorch's blocked
// sums.
#pragma once

#include "product.cuh"
#include "product_stage.cuh"
#include "product_weights.cuh"
#include "ptx/cp_async.cuh"

namespace flashvl::cuda {

// kEach: columns of the tile that a thread has, eight columns apart: 8 or 1.
template <class W, int kEach>
class FmaProduct {
 public:
  static constexpr int kThreads = 256, kRows = 8 * kEach, kColumns = 64;
  // Of a multiprocessor at least. int4 holds scales too, and spills on sm_120 for a second one.
  static constexpr int kBlocks = W::kGroup > 0 && kEach > 1 ? 1 : 2;
  static constexpr int kStep = 16, kStages = 4;
  static constexpr int kTileStride = kColumns + 4;

  __device__ __forceinline__ explicit FmaProduct(const ProductArgs<float>& args)
      : args_(args), place_(tile_place<kRows, kColumns>(args)) {
    const int64_t row = place_.first_row + threadIdx.x / 4;
    x_at_ = threadIdx.x < kRows * 4 && row < args.rows ? args.x_rows.offset(row) : -1;
    const int64_t column = place_.first_column + threadIdx.x / kWChunks;
    w_row_ = threadIdx.x < kColumns * kWChunks ? weight_row(args, column) : -1;
  }

  __device__ __forceinline__ void run() {
    const int64_t first = blockIdx.y * args_.part, last = min(first + args_.part, args_.padded);
    const int64_t steps = first < last ? ceil_div(last - first, kStep) : 0;
#pragma unroll 1
    for (int s = 0; s < kStages - 1; ++s) {
      if (s < steps) copy_step(s, first + s * kStep);
      cp_async_commit();
    }
    int stage = 0;
#pragma unroll 1
    for (int64_t s = 0; s < steps; ++s) {
      cp_async_wait<kStages - 2>();
      sync_block();  // the step is there, and the stage before it has been read by all
      const int64_t ahead = s + kStages - 1;
      if (ahead < steps) {
        copy_step(stage == 0 ? kStages - 1 : stage - 1, first + ahead * kStep);
      }
      cp_async_commit();
      multiply(stage, first + s * kStep);
      stage = stage == kStages - 1 ? 0 : stage + 1;
    }
    cp_async_wait<0>();
    sync_block();  // the ring makes room for the sums
    store_sums();
    sync_block();
    finish_tile<kRows, kColumns, kTileStride>(args_, place_, {dynamic_shared<float>().address});
  }

 private:
  // Words of a row in a stage.
  static constexpr int kXWords = kStep;
  static constexpr int kWWords = kStep / W::kWordColumns;
  static constexpr int kWChunks = (kWWords + 3) / 4;
  static constexpr int kStageWords = kRows * kXWords + kColumns * kWWords;

  __device__ __forceinline__ static Shared<uint32_t> stage_at(int stage) {
    return dynamic_shared<uint32_t>() + stage * kStageWords;
  }
  // Chunk `chunk` of row `row` of x, and of w, whose rows of int4 are half a chunk.
  __device__ __forceinline__ static Shared<uint32_t> x_chunk(int stage, int row, int chunk) {
    return StageRows<kXWords / 4>{stage_at(stage)}.at(row, chunk);
  }
  __device__ __forceinline__ static Shared<uint32_t> w_chunk(int stage, int row, int chunk) {
    const Shared<uint32_t> rows = stage_at(stage) + kRows * kXWords;
    if constexpr (kWWords == 2) {
      return rows + row * 2;
    } else {
      return StageRows<kWChunks>{rows}.at(row, chunk);
    }
  }
  __device__ __forceinline__ static Vec<float, 4> floats_of(Shared<uint32_t> chunk) {
    return Shared<float>{reinterpret_cast<float*>(chunk.address)}.template load<4>(0);
  }

  // Columns `column` to `column` + kStep; zeros where there are none.
  __device__ __forceinline__ void copy_step(int stage, int64_t column) const {
    const int row = threadIdx.x / 4, chunk = threadIdx.x % 4;
    const int64_t c = column + chunk * 4;
    const bool x_there = x_at_ >= 0 && c < args_.padded;
    if (threadIdx.x < kRows * 4) {
      cp_async_16(x_chunk(stage, row, chunk), args_.x + (x_there ? x_at_ + c : 0), x_there);
    }
    if (threadIdx.x >= kColumns * kWChunks) return;
    const int w_part = threadIdx.x % kWChunks;
    const int64_t word = column / W::kWordColumns + w_part * 4;
    const bool w_there = w_row_ >= 0 && word < args_.w_words;
    const Shared<uint32_t> to = w_chunk(stage, threadIdx.x / kWChunks, w_part);
    const Global<const uint32_t> from = args_.w + (w_there ? w_row_ * args_.w_stride + word : 0);
    if constexpr (kWWords == 2) {
      cp_async_small<8>(to, from, w_there);
    } else {
      cp_async_16(to, from, w_there);
    }
  }

  // Columns 4 k to 4 k + 4 of a step, of row `row` of w.
  __device__ __forceinline__ static Vec<float, 4> weights(int stage, int row, int k) {
    Vec<float, 4> w;
    if constexpr (W::kWordColumns == 1) {
      w = floats_of(w_chunk(stage, row, k));
    } else {
      constexpr int kParts = W::kWordColumns / 4;
      const uint32_t word = w_chunk(stage, row, 0).load(k / kParts);
#pragma unroll
      for (int e = 0; e < 4; ++e) w[e] = column_of(W{}, word, k % kParts * 4 + e);
    }
    return w;
  }

  // The first of this thread's two rows and of its columns. Many rows: a warp has 8 rows and all
  // columns; few: all rows and 8 columns.
  __device__ __forceinline__ static int my_row() {
    return (kEach > 1 ? static_cast<int>(threadIdx.x) : lane()) / 8 * 2;
  }
  __device__ __forceinline__ static int my_column() {
    return threadIdx.x % 8 + (kEach > 1 ? 0 : threadIdx.x / kWarp * 8);
  }

  __device__ __forceinline__ void multiply(int stage, int64_t column) {
    const int row = my_row(), first = my_column();
    if (place_.first_row + row >= args_.rows) return;
    float part[2][kEach] = {};
#pragma unroll
    for (int k = 0; k < kStep / 4; ++k) {
      Vec<float, 4> x[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        x[i] = floats_of(x_chunk(stage, row + i, k));
      }
#pragma unroll
      for (int j = 0; j < kEach; ++j) {
        const Vec<float, 4> w = weights(stage, first + 8 * j, k);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
#pragma unroll
          for (int e = 0; e < 4; ++e) part[i][j] = fmaf(x[i][e], w[e], part[i][j]);
        }
      }
    }
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      float scale = 1.0f;
      if constexpr (W::kGroup > 0) scale = scale_at(first + 8 * j, column / W::kGroup);
#pragma unroll
      for (int i = 0; i < 2; ++i) sums_[i][j] = fmaf(part[i][j], scale, sums_[i][j]);
    }
  }

  // Of column `column` of the tile and a group of columns of w.
  __device__ __forceinline__ float scale_at(int column, int64_t group) const {
    const int64_t groups = W::kGroup > 0 ? ceil_div(args_.columns, W::kGroup) : 1;
    const int64_t row = weight_row(args_, place_.first_column + column);
    return row >= 0 ? args_.scale.load(row * groups + group) : 0.0f;
  }

  __device__ __forceinline__ void store_sums() const {
    const int row = my_row(), first = my_column();
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      float scale = 1.0f;
      if constexpr (W::kWordColumns == 4) scale = scale_at(first + 8 * j, 0);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        dynamic_shared<float>().store((row + i) * kTileStride + first + 8 * j, sums_[i][j] * scale);
      }
    }
  }

  const ProductArgs<float>& args_;
  TilePlace place_;
  int64_t x_at_, w_row_;  // -1 where there is none
  float sums_[2][kEach] = {};
};

// The grid is (tiles, splits of the sum).
template <class W, int kEach>
__global__ void __launch_bounds__(FmaProduct<W, kEach>::kThreads, FmaProduct<W, kEach>::kBlocks)
    product_fma_kernel(ProductArgs<float> args) {
  FmaProduct<W, kEach>(args).run();
}

}  // namespace flashvl::cuda
