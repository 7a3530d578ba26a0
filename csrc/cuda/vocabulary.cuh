// Sixteen words of a vocabulary times up to eight rows, by one warp that reads each word once.
//
// The words are the 16 rows of m16n8k16, the rows of x its 8 columns: d is what the warp wants, and
// nothing is summed over lanes. The order in which the columns of x are added is free, so a lane
// takes 16 neighbouring bytes of two words, whatever the format, and calls them the columns its
// registers stand for; the rows of x lie in shared memory in that order, 16 bytes a lane side by
// side. q of an integer format is exact in 16 bits, and its scale multiplies the fp32 sums
// (LLM.int8(), arXiv 2208.07339; groups of AWQ, arXiv 2306.00978). fp32 takes multiply-adds.
#pragma once

#include "ptx/mma.cuh"
#include "reduce.cuh"

namespace flashvl::cuda {

constexpr int kWordsATile = 16, kRowsATile = 8;
constexpr int kPlain = 0, kInt8 = 1, kInt4 = 2;
constexpr int kInt4Zero = 8;

template <class T, int kFormat>
struct Stored {
  using type = T;
};
template <class T>
struct Stored<T, kInt8> {
  using type = int8_t;
};
template <class T>
struct Stored<T, kInt4> {
  using type = uint8_t;
};

// Words in the layout "rows" of packing.py. scale: a word each (int8), or a group of 128 columns.
template <class T, int kFormat>
struct Vocabulary {
  using W = typename Stored<T, kFormat>::type;
  Global<const W> data;
  Global<const float> scale;  // null: plain
  int64_t words, stride, scale_stride;
  int64_t columns;

  static constexpr int kItems = 16 / sizeof(W);                    // of one access
  static constexpr int kColumns = kFormat == kInt4 ? 32 : kItems;  // of one access
  static constexpr int kChunk = 4 * kColumns;                      // of the four lanes of a word
  static constexpr int kUnit = 16 / sizeof(T), kUnits = kColumns / kUnit;  // 16 bytes of a row of x
  static_assert(kFormat != kInt4 || kChunk == 128);                        // a chunk is a group
};

// Where the unit of row `row` lies that begins with column `c`, among `rows` rows, in elements.
template <class V>
__device__ __forceinline__ int64_t unit_at(int64_t c, int row, int rows) {
  const int64_t chunk = c / V::kChunk;
  const int within = static_cast<int>(c - chunk * V::kChunk);
  const int pair = within / V::kColumns, unit = within % V::kColumns / V::kUnit;
  return (((chunk * V::kUnits + unit) * rows + row) * 4 + pair) * V::kUnit;
}

// The 16 bytes of a word that begin with column `c`; q = 0 past the last column.
template <bool kWide, class T, int kFormat>
__device__ __forceinline__ auto items_at(const Vocabulary<T, kFormat>& w, int64_t word, int64_t c) {
  using V = Vocabulary<T, kFormat>;
  Vec<typename V::W, V::kItems> items{};
  const int64_t first = word * w.stride + (kFormat == kInt4 ? c / 2 : c);
  if constexpr (kWide) {
    if (word < w.words && c < w.columns) items = w.data.template load_once<V::kItems>(first);
  } else {
    constexpr int kEach = V::kColumns / V::kItems;
#pragma unroll
    for (int i = 0; i < V::kItems; ++i) {
      if (word < w.words && c + i * kEach < w.columns) items[i] = w.data.load(first + i);
    }
  }
  return items;
}

// Column i of an access: the weight, or q.
template <int kFormat, class Items>
__device__ __forceinline__ float column_of(const Items& items, int i) {
  if constexpr (kFormat == kPlain) {
    return to_float(items[i]);
  } else if constexpr (kFormat == kInt8) {
    return static_cast<float>(items[i]);
  } else {
    const int byte = items[i / 2];
    return static_cast<float>((i % 2 ? byte >> 4 : byte & 15) - kInt4Zero);
  }
}

// Columns i and i + 1 as an operand of mma; exact.
template <class T, int kFormat, class Items>
__device__ __forceinline__ uint32_t column_pair(const Items& items, int i) {
  if constexpr (kFormat == kPlain) {
    const Vec<T, 2> pair{{items[i], items[i + 1]}};
    return bits_as<uint32_t>(pair);
  } else {
    const Vec<T, 2> pair{{from_float<T>(column_of<kFormat>(items, i)),
                          from_float<T>(column_of<kFormat>(items, i + 1))}};
    return bits_as<uint32_t>(pair);
  }
}

// sums += the two words of this lane times all rows, over one chunk: d of m16n8k16.
template <class T, int kFormat, class Items>
__device__ __forceinline__ void multiply(float (&sums)[4], const Items& low, const Items& high,
                                         const Shared<T>& x, int chunk, int rows) {
  using V = Vocabulary<T, kFormat>;
  const int group = lane() / 4, pair = lane() % 4;
#pragma unroll
  for (int u = 0; u < V::kUnits; ++u) {
    Vec<T, V::kUnit> row{};
    if (group < rows) {
      row = x.template load<V::kUnit>((((chunk * V::kUnits + u) * rows + group) * 4 + pair) *
                                      V::kUnit);
    }
#pragma unroll
    for (int i = 0; i < V::kUnit; i += 4) {
      const int c = u * V::kUnit + i;
      const uint32_t a[4] = {column_pair<T, kFormat>(low, c), column_pair<T, kFormat>(high, c),
                             column_pair<T, kFormat>(low, c + 2),
                             column_pair<T, kFormat>(high, c + 2)};
      const Vec<T, 2> first{{row[i], row[i + 1]}}, second{{row[i + 2], row[i + 3]}};
      const uint32_t b[2] = {bits_as<uint32_t>(first), bits_as<uint32_t>(second)};
      mma_m16n8k16<T>(sums, a, b);
    }
  }
}

// The sums of a tile while chunks go by, in 16 bits: d as mma leaves it.
template <class T, int kFormat>
class TileSums {
 public:
  template <class Items>
  __device__ __forceinline__ void add(const Items& low, const Items& high, const Shared<T>& x,
                                      int chunk, int rows, float low_scale, float high_scale) {
    if constexpr (kFormat == kInt4) {
      float group[4] = {};
      multiply<T, kFormat>(group, low, high, x, chunk, rows);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        sums_[i] = fmaf(group[i], i < 2 ? low_scale : high_scale, sums_[i]);
      }
    } else {
      multiply<T, kFormat>(sums_, low, high, x, chunk, rows);
    }
  }

  // d[i] is word lane / 4 + 8 (i / 2), row 2 (lane % 4) + i % 2.
  __device__ __forceinline__ void finish(float (&d)[4]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) d[i] = sums_[i];
  }

 private:
  float sums_[4] = {};
};

// In fp32 each of a word's four lanes adds up a quarter of the columns, a chain of sums a chunk:
// one as long as the row errs by more than twice what a blocked product does.
template <int kFormat>
class TileSums<float, kFormat> {
 public:
  template <class Items>
  __device__ __forceinline__ void add(const Items& low, const Items& high, const Shared<float>& x,
                                      int chunk, int rows, float low_scale, float high_scale) {
    using V = Vocabulary<float, kFormat>;
#pragma unroll
    for (int r = 0; r < kRowsATile; ++r) {
      if (r >= rows) break;
      float part[2] = {};
#pragma unroll
      for (int u = 0; u < V::kUnits; ++u) {
        const Vec<float, V::kUnit> row = x.template load<V::kUnit>(
            (((chunk * V::kUnits + u) * rows + r) * 4 + lane() % 4) * V::kUnit);
#pragma unroll
        for (int i = 0; i < V::kUnit; ++i) {
          const int c = u * V::kUnit + i;
          part[0] = fmaf(column_of<kFormat>(low, c), row[i], part[0]);
          part[1] = fmaf(column_of<kFormat>(high, c), row[i], part[1]);
        }
      }
      sums_[r][0] = fmaf(part[0], low_scale, sums_[r][0]);
      sums_[r][1] = fmaf(part[1], high_scale, sums_[r][1]);
    }
  }

  __device__ __forceinline__ void finish(float (&d)[4]) const {
#pragma unroll
    for (int r = 0; r < kRowsATile; ++r) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float sum = sums_[r][h];
        sum += shuffle_xor(sum, 1);
        sum += shuffle_xor(sum, 2);
        if (r / 2 == lane() % 4) d[2 * h + r % 2] = sum;
      }
    }
  }

 private:
  float sums_[kRowsATile][2] = {};
};

// The scales of int4 of a warp's 16 words, eight groups at a time: neighbouring lanes load
// neighbouring groups of a word, whole sectors, where the lanes that need them would take 4 bytes.
class GroupScales {
 public:
  static constexpr int kGroups = 8;

  template <class V>
  __device__ __forceinline__ void load(const V& w, int64_t first, int chunk, int chunks) {
    const int group = chunk + lane() % kGroups;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t word = first + i * 4 + lane() / kGroups;
      held_[i] = 1.0f;
      if (word < w.words && group < chunks) {
        held_[i] = w.scale.load(word * w.scale_stride + group);
      }
    }
  }

  // Of word lane / 4 + 8 half, and the group that is chunk `chunk`.
  __device__ __forceinline__ float at(int half, int chunk) const {
    const int from = lane() / 4 % 4 * kGroups + chunk % kGroups;
    const float low = shuffle_idx(held_[2 * half], from);
    const float high = shuffle_idx(held_[2 * half + 1], from);
    return lane() < kWarp / 2 ? low : high;
  }

 private:
  float held_[4];
};

// Logits of words [first, first + 16), as TileSums::finish lays them out, not rounded.
template <bool kWide, class T, int kFormat>
__device__ __forceinline__ void tile_logits(const Vocabulary<T, kFormat>& w, const Shared<T>& x,
                                            int64_t first, int rows, float (&d)[4]) {
  using V = Vocabulary<T, kFormat>;
  // Chunks under way: 128 bytes a lane, or 64 where integers are decoded and need the registers
  // (single elements take one each, so of them there is one chunk);
  // with 512 threads a multiprocessor that is 32 KiB, where an H100 needs 18 (3.35 TB/s, 700 ns).
  constexpr int kAhead = !kWide ? 1 : kFormat == kPlain ? 4 : sizeof(T) == 2 ? 2 : 1;
  const int64_t low = first + lane() / 4, high = low + 8;
  const int chunks = static_cast<int>(ceil_div(w.columns, V::kChunk));
  TileSums<T, kFormat> sums;
  [[maybe_unused]] GroupScales scales;
#pragma unroll 1
  for (int chunk = 0; chunk < chunks; chunk += kAhead) {
    if constexpr (kFormat == kInt4) {
      if (chunk % GroupScales::kGroups == 0) scales.load(w, first, chunk, chunks);
    }
    Vec<typename V::W, V::kItems> items[kAhead][2];
#pragma unroll
    for (int s = 0; s < kAhead; ++s) {
      const int64_t c = static_cast<int64_t>(chunk + s) * V::kChunk + lane() % 4 * V::kColumns;
#pragma unroll
      for (int h = 0; h < 2; ++h) items[s][h] = items_at<kWide>(w, h ? high : low, c);
    }
#pragma unroll
    for (int s = 0; s < kAhead; ++s) {
      if (chunk + s < chunks) {
        float scale[2] = {1.0f, 1.0f};
        if constexpr (kFormat == kInt4) {
          scale[0] = scales.at(0, chunk + s);
          scale[1] = scales.at(1, chunk + s);
        }
        sums.add(items[s][0], items[s][1], x, chunk + s, rows, scale[0], scale[1]);
      }
    }
  }
  sums.finish(d);
  if constexpr (kFormat == kInt8) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t word = i < 2 ? low : high;
      if (word < w.words) d[i] *= w.scale.load(word);
    }
  }
}

}  // namespace flashvl::cuda
