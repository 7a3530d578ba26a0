// The vocabulary's best k words: norm, product and selection in one launch, with no logits in
// memory.
//
// Bound by the bytes of the vocabulary, read once for eight rows at a time. A block normalises its
// rows into shared memory, goes over its share of the words, 16 a warp, and a warp a row keeps the
// best; the last block to arrive picks from what all kept. Logits are rounded to the dtype before
// they are compared, as in the reference.
#pragma once

#include "arrival.cuh"
#include "best_words.cuh"
#include "rms_norm.cuh"
#include "vocabulary.cuh"

namespace flashvl::cuda {

constexpr int kHeadWarps = kRowsATile;  // a warp a row when the best are kept
constexpr int kHeadThreads = kHeadWarps * kWarp;
constexpr int kHeadWords = kHeadWarps * kWordsATile;  // of a block at a time
// Between the keys of two rows: the four rows and four words of half a warp have banks of their
// own.
constexpr int kKeyPitch = kHeadWords + 2;
// Blocks a multiprocessor holds at least: in fp32 the sums of eight rows take the registers of two.
template <class T, int kFormat>
constexpr int kHeadBlocks = sizeof(T) == 4 ? 1 : (kFormat == 0 ? 3 : 2);

template <class T, int kFormat>
struct ArgmaxHeadArgs {
  Global<const T> x;
  Global<const T> norm_weight;
  Rows x_rows;
  Vocabulary<T, kFormat> vocabulary;
  Global<T> values;         // [rows, k]
  Global<int64_t> indices;  // [rows, k]
  Global<int64_t> kept;     // [groups of rows, blocks, rows of a group, k]: keys
  Global<int> counters;     // a group of rows each; zero before and after
  int64_t rows;
  int rows_at_once;  // up to 8
  int k;
  float eps;
};

// A unit of a row from column c on; zeros past its end.
template <bool kWide, int kUnit, class T>
__device__ __forceinline__ Vec<T, kUnit> unit_of(const Global<const T>& from, int64_t c,
                                                 int64_t columns) {
  Vec<T, kUnit> unit{};
  if constexpr (kWide) {
    if (c < columns) unit = from.template load<kUnit>(c);
  } else {
#pragma unroll
    for (int i = 0; i < kUnit; ++i) {
      if (c + i < columns) unit[i] = from.load(c + i);
    }
  }
  return unit;
}

// RMSNorm of `rows` rows from `first` on into shared memory, in the order that the product reads.
// The columns up to the next whole chunk are zeros.
template <bool kWide, class T, int kFormat>
__device__ __forceinline__ void normalise_rows(const ArgmaxHeadArgs<T, kFormat>& args,
                                               int64_t first, int rows, const Shared<T>& to) {
  using V = Vocabulary<T, kFormat>;
  FLASHVL_SHARED(float, partial, kHeadWarps* kRowsATile);
  const int64_t columns = args.vocabulary.columns;
  const int64_t padded = ceil_div(columns, V::kChunk) * V::kChunk;
  constexpr int kStep = kHeadThreads * V::kUnit;
  float squares[kRowsATile] = {};
  for (int64_t c = threadIdx.x * V::kUnit; c < columns; c += kStep) {
#pragma unroll
    for (int r = 0; r < kRowsATile; ++r) {
      if (r >= rows) break;
      const auto unit =
          unit_of<kWide, V::kUnit>(args.x + args.x_rows.offset(first + r), c, columns);
#pragma unroll
      for (int i = 0; i < V::kUnit; ++i) {
        squares[r] = fmaf(to_float(unit[i]), to_float(unit[i]), squares[r]);
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kRowsATile; ++r) {
    if (r >= rows) break;
    const float sum = warp_sum(squares[r]);
    if (lane() == 0) partial.store(r * kHeadWarps + threadIdx.x / kWarp, sum);
  }
  sync_block();
#pragma unroll 1
  for (int r = 0; r < rows; ++r) {
    float sum = 0.0f;
#pragma unroll
    for (int warp = 0; warp < kHeadWarps; ++warp) sum += partial.load(r * kHeadWarps + warp);
    const float scale = rms_scale(sum, columns, args.eps);
    const Global<const T> row = args.x + args.x_rows.offset(first + r);
    for (int64_t c = threadIdx.x * V::kUnit; c < padded; c += kStep) {
      const auto unit = unit_of<kWide, V::kUnit>(row, c, columns);
      const auto weight = unit_of<kWide, V::kUnit>(args.norm_weight, c, columns);
      Vec<T, V::kUnit> normal = rms_scaled(unit, weight, scale);
#pragma unroll
      for (int i = 0; i < V::kUnit; ++i) {
        if (c + i >= columns) normal[i] = from_float<T>(0.0f);  // a scale of Inf made it NaN
      }
      to.store(unit_at<V>(c, r, rows), normal);
    }
  }
  sync_block();
}

// The keys of 128 words, [rows, kKeyPitch]: each warp's 16 words.
template <bool kWide, class T, int kFormat>
__device__ __forceinline__ void store_keys(const ArgmaxHeadArgs<T, kFormat>& args,
                                           const Shared<T>& x, int64_t first, int rows,
                                           const Shared<int64_t>& keys) {
  const int tile = static_cast<int>(threadIdx.x) / kWarp * kWordsATile;
  float d[4];
  tile_logits<kWide>(args.vocabulary, x, first + tile, rows, d);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int place = tile + lane() / 4 + i / 2 * 8, row = lane() % 4 * 2 + i % 2;
    const int64_t word = first + place;
    if (row < rows) {
      const int64_t key = word < args.vocabulary.words ? key_of(round_to<T>(d[i]), word) : kNoWord;
      keys.store(row * kKeyPitch + place, key);
    }
  }
}

// The best k of what the blocks kept for a row, best first.
template <class T, int kFormat>
__device__ __forceinline__ void store_best(const ArgmaxHeadArgs<T, kFormat>& args, int64_t kept,
                                           int64_t row) {
  constexpr int kAhead = 4;
  BestWords best(args.k);
  const int64_t stride = static_cast<int64_t>(args.rows_at_once) * args.k;
  const int64_t count = static_cast<int64_t>(gridDim.y) * args.k;
#pragma unroll 1
  for (int64_t from = 0; from < count; from += kAhead * kWarp) {
    int64_t keys[kAhead];
#pragma unroll
    for (int s = 0; s < kAhead; ++s) {
      const int64_t i = from + s * kWarp + lane();
      const int64_t block = i / args.k;
      keys[s] = i < count ? args.kept.load(kept + block * stride + i - block * args.k) : kNoWord;
    }
#pragma unroll
    for (int s = 0; s < kAhead; ++s) best.offer(keys[s]);
  }
#pragma unroll 1
  for (int rank = 0; rank < args.k; ++rank) {
    const int64_t key = best.take(args.k);
    if (lane() == 0) {
      args.values.store(row * args.k + rank, from_float<T>(logit_of(key)));
      args.indices.store(row * args.k + rank, word_of(key));
    }
  }
}

// The grid is (groups of rows, blocks of words): groups run beside each other over the same words.
template <class T, int kFormat, bool kWide>
__global__ void __launch_bounds__(kHeadThreads, kHeadBlocks<T, kFormat>)
    argmax_head_kernel(ArgmaxHeadArgs<T, kFormat> args) {
  using V = Vocabulary<T, kFormat>;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * args.rows_at_once;
  const int rows =
      static_cast<int>(min(args.rows - first_row, static_cast<int64_t>(args.rows_at_once)));
  const Shared<int64_t> keys = dynamic_shared<int64_t>();
  const Shared<T> x = dynamic_shared<T>(static_cast<int64_t>(args.rows_at_once) * kKeyPitch *
                                        static_cast<int64_t>(sizeof(int64_t)));
  normalise_rows<kWide>(args, first_row, rows, x);

  const int mine = static_cast<int>(threadIdx.x) / kWarp;  // the row whose best this warp keeps
  BestWords best(args.k);
  const int64_t step = static_cast<int64_t>(gridDim.y) * kHeadWords;
#pragma unroll 1
  for (int64_t first = static_cast<int64_t>(blockIdx.y) * kHeadWords; first < args.vocabulary.words;
       first += step) {
    store_keys<kWide>(args, x, first, rows, keys);
    sync_block();
    if (mine < rows) {
#pragma unroll 1
      for (int i = 0; i < kHeadWords; i += kWarp) {
        best.offer(keys.load(mine * kKeyPitch + i + lane()));
      }
    }
    sync_block();
  }

  const int64_t stride = static_cast<int64_t>(args.rows_at_once) * args.k;
  const int64_t group = static_cast<int64_t>(blockIdx.x) * gridDim.y * stride;
  if (mine < rows) {
    best.each(args.k, [&](int slot, int64_t key) {
      args.kept.store(group + blockIdx.y * stride + mine * args.k + slot, key);
    });
  }
  if (!last_to_arrive(args.counters + blockIdx.x, static_cast<int>(gridDim.y))) return;
  if (mine < rows) store_best(args, group + mine * args.k, first_row + mine);
}

}  // namespace flashvl::cuda
