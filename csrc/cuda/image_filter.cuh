// One pass of an antialiased resize along an axis, in integers: bytes in shared memory, weights of
// 22 bits after the point, sums that fit into 32 (ops/image_to_patches.py).
//
// Pixels lie in shared memory as in an image, so four of a row are three words whose bytes have a
// channel each that the compiler knows. Along rows, a thread makes a pixel: lanes are neighbouring
// rows. Down, it makes the bytes of one word or of three: lanes go along a row. Lanes of an output
// share its weights, which are staged too: from memory a warp would take 16 bytes of them out of
// every 32.
#pragma once

#include "image_stage.cuh"

namespace flashvl::cuda {

constexpr int kFraction = 22;

// Of each output the first position, a multiple of four, and `groups` times four weights. Those of
// positions past the end are zero.
struct Filter {
  Global<const int32_t> first;
  Global<const int32_t> weight;
  int groups;
};

// The weights of neighbouring outputs from `begin` on in shared memory, and behind them their first
// positions.
struct Taps {
  Shared<int32_t> weight, first;
  int begin, groups;

  __device__ __forceinline__ int start(int output) const { return first.load(output - begin); }
  // The position past the last that an output needs.
  __device__ __forceinline__ int stop(int output) const { return start(output) + 4 * groups; }
};

// Of outputs [begin, end). Others read after a barrier. `to` has (4 * groups + 1) * (end - begin)
// words, aligned to 16 bytes.
__device__ __forceinline__ Taps stage_taps(const Filter& from, Shared<int32_t> to, int begin,
                                           int end) {
  const int words = (end - begin) * from.groups * 4;
  const Taps taps{to, to + words, begin, from.groups};
  const int64_t at = static_cast<int64_t>(begin) * from.groups * 4;
  for (int i = threadIdx.x * 4; i < words; i += blockDim.x * 4) {
    taps.weight.store(i, from.weight.load<4>(at + i));
  }
  for (int i = threadIdx.x; i < end - begin; i += blockDim.x) {
    taps.first.store(i, from.first.load(begin + i));
  }
  return taps;
}

__device__ __forceinline__ int byte_of(uint32_t word, int n) {
  return static_cast<int>(word >> n % kWord * 8 & 255);
}

// The sums of some bytes of the result.
template <int kCount>
struct Sums {
  int32_t at[kCount];

  __device__ __forceinline__ Sums() {
#pragma unroll
    for (int i = 0; i < kCount; ++i) at[i] = 1 << (kFraction - 1);  // rounds half up
  }
  // Byte `n` of neighbouring words, times a weight.
  template <int kWords>
  __device__ __forceinline__ void add(int i, const uint32_t (&words)[kWords], int n,
                                      int32_t weight) {
    at[i] += byte_of(words[n / kWord], n) * weight;
  }
  __device__ __forceinline__ int grey(int i) const { return min(max(at[i] >> kFraction, 0), 255); }
};

template <int kWords>
__device__ __forceinline__ void load_words(const Shared<uint32_t>& from, int at,
                                           uint32_t (&words)[kWords]) {
#pragma unroll
  for (int j = 0; j < kWords; ++j) words[j] = from.load(at + j);
}

// Along rows [row, row + rows) of `from`: calls visit(output, y, sums), of the three channels, for
// outputs [begin, end).
//
// Lanes that have fewer rows than 32 have several outputs, whose words lie anywhere. Sums of
// integers have no order, so these begin with the words that lie in banks of their own.
template <class V>
__device__ __forceinline__ void filter_along(const Taps& by, int begin, int end, const Staged& from,
                                             int row, int rows, V visit) {
  const Shared<uint32_t> staged = from.words();
  const int lines = static_cast<int>(ceil_div(rows, from.unit)) * from.unit;
  const int shares = kWarp / from.unit, share = lane() / from.unit;
  for (int i = threadIdx.x; i < (end - begin) * lines; i += blockDim.x) {
    const int output = begin + i / lines, y = row + i % lines;
    if (y >= row + rows) continue;
    const int at = from.row(y) / kWord + (by.start(output) - from.first_pixel) / 4 * 3;
    const int weights = (output - by.begin) * by.groups * 4;
    // Three is its own inverse modulo `shares`.
    int g = (3 * (share - at) & (shares - 1)) % by.groups;
    Sums<3> sums;
#pragma unroll 4
    for (int n = 0; n < by.groups; ++n) {
      const Vec<int32_t, 4> weight = by.weight.load<4>(weights + 4 * g);
      uint32_t words[3];
      load_words(staged, at + 3 * g, words);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
#pragma unroll
        for (int c = 0; c < 3; ++c) sums.add(c, words, 3 * k + c, weight[k]);
      }
      g = g + 1 == by.groups ? 0 : g + 1;
    }
    visit(output, y, sums);
  }
}

// Down the columns of `from`: calls visit(output, word, sums) for outputs [begin, end) and the
// bytes of each kWords of a row.
template <int kWords, class V>
__device__ __forceinline__ void filter_down(const Taps& by, int begin, int end, const Staged& from,
                                            V visit) {
  const Shared<uint32_t> staged = from.words();
  const int parts = 3 * from.pixels / kWord / kWords, pitch = from.pitch / kWord;
  for (int i = threadIdx.x; i < (end - begin) * parts; i += blockDim.x) {
    const int output = begin + i / parts, word = i % parts * kWords;
    const int weights = (output - by.begin) * by.groups * 4;
    int slot = (by.start(output) - from.first_row) % from.slots;
    Sums<kWords * kWord> sums;
#pragma unroll 1
    for (int g = 0; g < by.groups; ++g) {
      const Vec<int32_t, 4> weight = by.weight.load<4>(weights + 4 * g);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        uint32_t words[kWords];
        load_words(staged, (slot + k) * pitch + word, words);
#pragma unroll
        for (int n = 0; n < kWords * kWord; ++n) sums.add(n, words, n, weight[k]);
      }
      slot += 4;  // slots are a multiple of four, as first positions are
      if (slot == from.slots) slot = 0;
    }
    uint32_t bytes[kWords] = {};
#pragma unroll
    for (int n = 0; n < kWords * kWord; ++n) {
      bytes[n / kWord] |= static_cast<uint32_t>(sums.grey(n)) << n % kWord * 8;
    }
    visit(output, word, bytes);
  }
}

}  // namespace flashvl::cuda
