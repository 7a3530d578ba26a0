// One pass of an antialiased resize along an axis, in integers: bytes in shared memory, weights of
// 22 bits after the point, sums that fit into 32 (ops/image_to_patches.py).
//
// A pass sees its source as lines along the axis. A block stages some lines, each channel by itself
// whatever the order in memory, so that a thread reads four neighbours of its line as one word: a
// product costs two integer operations and a quarter of an access. Lanes are neighbouring lines,
// whose pitch of an odd number of words gives each a bank of its own, and share their weights,
// which are staged too: from memory a warp would take 16 bytes of them out of every 32.
#pragma once

#include "memory.cuh"
#include "ptx/sync.cuh"

namespace flashvl::cuda {

constexpr int kFraction = 22;
constexpr int kBytes = 16;  // of one access
constexpr int kSector = 32;

// Which bytes are neighbours: none; RGB pixels along a line; RGB pixels of neighbouring lines; a
// channel's positions.
enum class Runs : int { none, along, across, planes };

// uint8 [3, lines, positions] at any strides; `span` bytes from the first to the last.
struct Pixels {
  Global<const uint8_t> bytes;
  int64_t position_stride, line_stride, channel_stride, span;
  int positions, lines;
  int runs;
};

// Of each output the first position, a multiple of four, and `groups` times four weights. Those of
// positions past the end are zero.
struct Filter {
  Global<const int32_t> first;
  Global<const int32_t> weight;
  int groups;
};

// The weights of outputs [begin, end) in shared memory, and behind them their first positions.
struct Taps {
  Shared<int32_t> weight, first;
  int begin, end, groups;

  __device__ __forceinline__ int start(int output) const { return first.load(output - begin); }
  // The positions that outputs [from, to) need, as those of Staged.
  __device__ __forceinline__ int reach(int from, int to) const {
    return start(to - 1) + 4 * groups - start(from);
  }
};

// Others read after a barrier. `to` has (4 * groups + 1) * (end - begin) words, aligned to 16
// bytes.
__device__ __forceinline__ Taps stage_taps(const Filter& from, Shared<int32_t> to, int begin,
                                           int end) {
  const int words = (end - begin) * from.groups * 4;
  const Taps taps{to, to + words, begin, end, from.groups};
  const int64_t at = static_cast<int64_t>(begin) * from.groups * 4;
  for (int i = threadIdx.x * 4; i < words; i += blockDim.x * 4) {
    taps.weight.store(i, from.weight.load<4>(at + i));
  }
  for (int i = threadIdx.x; i < end - begin; i += blockDim.x) {
    taps.first.store(i, from.first.load(begin + i));
  }
  return taps;
}

// Part of the lines in shared memory: byte (channel * lines + line) * pitch + position.
struct Staged {
  Shared<uint8_t> bytes;
  int pitch;
  int first_line, lines;
  int first_position, positions;  // multiples of 4
};

// Where byte `i` of run `run` goes.
__device__ __forceinline__ int staged_at(const Staged& to, int runs, int run, int i) {
  if (runs == static_cast<int>(Runs::planes)) return run * to.pitch + i;
  const int pixel = i / 3, channel = i - 3 * pixel;
  return runs == static_cast<int>(Runs::along) ? (channel * to.lines + run) * to.pitch + pixel
                                               : (channel * to.lines + pixel) * to.pitch + run;
}

// 16 bytes that begin `at` bytes into a run of `bytes`: those of them that belong to it.
__device__ __forceinline__ void store_staged(const Staged& to, int runs, int run, int at, int bytes,
                                             const Vec<uint8_t, kBytes>& values) {
  if (runs == static_cast<int>(Runs::planes) && at % 4 == 0 && at >= 0 && at + kBytes <= bytes) {
#pragma unroll
    for (int k = 0; k < kBytes; k += 4) {
      const Vec<uint8_t, 4> word{{values[k], values[k + 1], values[k + 2], values[k + 3]}};
      to.bytes.store(run * to.pitch + at + k, word);
    }
    return;
  }
#pragma unroll
  for (int k = 0; k < kBytes; ++k) {
    if (at + k >= 0 && at + k < bytes) to.bytes.store(staged_at(to, runs, run, at + k), values[k]);
  }
}

// Runs of neighbouring bytes, in aligned accesses of 16, which two neighbouring lanes make of a
// whole sector; one by one where those would leave the source.
__device__ __forceinline__ void stage_runs(const Pixels& from, const Staged& to, int inside) {
  const bool along = from.runs == static_cast<int>(Runs::along);
  const bool planes = from.runs == static_cast<int>(Runs::planes);
  const int count = along ? to.lines : planes ? 3 * to.lines : inside;
  const int bytes = along ? 3 * inside : planes ? inside : 3 * to.lines;
  const int vectors = (bytes + 2 * (kSector - 1)) / kSector * (kSector / kBytes);
  const int skew = static_cast<int>(reinterpret_cast<uintptr_t>(from.bytes.address) % kSector);
  const auto stage_vector = [&](int run, int vector) {
    const int line = along ? run : planes ? run % to.lines : 0;
    const int position = along || planes ? 0 : run;
    const int64_t first = (to.first_line + line) * from.line_stride +
                          (to.first_position + position) * from.position_stride +
                          (planes ? run / to.lines * from.channel_stride : 0);
    // The run begins `before` bytes into a sector; this vector, `at` bytes into the run.
    const int before = static_cast<int>((first + skew) % kSector);
    const int at = vector * kBytes - before;
    if (at + kBytes <= 0 || at >= bytes) return;
    Vec<uint8_t, kBytes> values{};
    if (first + at >= 0 && first + at + kBytes <= from.span) {
      values = from.bytes.load<kBytes>(first + at);
    } else {
#pragma unroll
      for (int k = 0; k < kBytes; ++k) {
        if (at + k >= 0 && at + k < bytes) values[k] = from.bytes.load(first + at + k);
      }
    }
    store_staged(to, from.runs, run, at, bytes, values);
  };
  // Lanes meet after each vector: past the end of a run they have none, and would go ahead alone.
  for (int i = static_cast<int>(threadIdx.x) - lane(); i < count * vectors; i += blockDim.x) {
    const int mine = i + lane(), run = mine / vectors;
    if (run < count) stage_vector(run, mine - run * vectors);
    sync_warp();
  }
}

// Zeros at positions [inside, to.positions) of the staged lines.
__device__ __forceinline__ void clear_past(const Staged& to, int inside) {
  const int outside = to.positions - inside;
  for (int i = threadIdx.x; i < 3 * to.lines * outside; i += blockDim.x) {
    const int row = i / outside;
    to.bytes.store(row * to.pitch + inside + i - row * outside, uint8_t{0});
  }
}

// Fills the staged lines: the source's bytes, and zeros past its end. Others read after a barrier.
__device__ __forceinline__ void stage(const Pixels& from, const Staged& to) {
  const int inside = min(to.positions, from.positions - to.first_position);
  if (from.runs != static_cast<int>(Runs::none)) {
    stage_runs(from, to, inside);
  } else {
    for (int i = threadIdx.x; i < 3 * to.lines * inside; i += blockDim.x) {
      const int row = i / inside, position = i - row * inside;
      const int64_t offset = (to.first_line + row % to.lines) * from.line_stride +
                             (to.first_position + position) * from.position_stride +
                             row / to.lines * from.channel_stride;
      to.bytes.store(row * to.pitch + position, from.bytes.load(offset));
    }
  }
  clear_past(to, inside);
}

// Calls visit(output, line, greys), three of 0..255, for the outputs of `by` in the staged lines.
template <class V>
__device__ __forceinline__ void filter(const Taps& by, const Staged& from, V visit) {
  const int channel_words = from.lines * from.pitch / 4;
  const Shared<uint32_t> words{reinterpret_cast<uint32_t*>(from.bytes.address)};
  for (int i = threadIdx.x; i < (by.end - by.begin) * from.lines; i += blockDim.x) {
    const int output = i / from.lines, line = i % from.lines;
    const int start = by.first.load(output) - from.first_position;
    const int at = (line * from.pitch + start) / 4;
    const int weights = output * by.groups * 4;
    int32_t sum[3];
#pragma unroll
    for (int c = 0; c < 3; ++c) sum[c] = 1 << (kFraction - 1);  // rounds half up
#pragma unroll 4
    for (int g = 0; g < by.groups; ++g) {
      const Vec<int32_t, 4> weight = by.weight.load<4>(weights + 4 * g);
#pragma unroll
      for (int c = 0; c < 3; ++c) {
        const uint32_t four = words.load(c * channel_words + at + g);
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          sum[c] += static_cast<int32_t>(four >> 8 * k & 255) * weight[k];
        }
      }
    }
    int greys[3];
#pragma unroll
    for (int c = 0; c < 3; ++c) greys[c] = min(max(sum[c] >> kFraction, 0), 255);
    visit(by.begin + output, line, greys);
  }
}

}  // namespace flashvl::cuda
