// Rows of a uint8 RGB image into shared memory, as they lie in memory: pixel after pixel, three
// bytes each.
//
// Both passes of a resize read them so (image_filter.cuh), four pixels as three words. A channel by
// itself would cost an address and a store for every byte; this is four stores of a word for each
// 16 bytes, on banks of their own.
#pragma once

#include "memory.cuh"
#include "ptx/sync.cuh"

namespace flashvl::cuda {

constexpr int kBytes = 16;  // of one access
constexpr int kSector = 32;
constexpr int kWord = 4;

// Which bytes of a row are neighbours: none; pixels of three; each channel's.
enum class Runs : int { none, packed, planes };

// uint8 [height, width, 3] at any strides; `span` bytes from the first to the last.
struct Pixels {
  Global<const uint8_t> bytes;
  int64_t row_stride, pixel_stride, channel_stride, span;
  int height, width;
  int runs;
};

// Part of an image in shared memory: row y is in slot (y - first_row) % slots.
struct Staged {
  Shared<uint8_t> bytes;
  int pitch;  // bytes from slot to slot: an odd number times 32 / unit words
  int unit;   // of 32 lanes, those along rows, which so have every 32 / unit-th bank
  int first_row, slots;
  int first_pixel, pixels;  // pixels: a multiple of four

  // Byte of a row's first pixel.
  __device__ __forceinline__ int row(int y) const { return (y - first_row) % slots * pitch; }
  __device__ __forceinline__ Shared<uint32_t> words() const {
    return {reinterpret_cast<uint32_t*>(bytes.address)};
  }
};

// 16 bytes that begin `at` bytes into a row of `bytes`: those of them that belong to it. `row` is
// where it begins in shared memory; `before` are the four bytes before these, which the lane below
// has.
__device__ __forceinline__ void store_staged(const Staged& to, int row, int at, int bytes,
                                             uint32_t before, const Vec<uint32_t, 4>& values) {
  const int into = at & 3, left = kWord - into;  // bytes into a word: the same for a whole row
  uint32_t words[4];
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const uint64_t both = uint64_t{values[j]} << 32 | (j == 0 ? before : values[j - 1]);
    words[j] = static_cast<uint32_t>(both >> 8 * left);
  }
  // Lanes are 16 bytes apart, so eight of them have every fourth bank: each eight its own.
  const bool cut = lane() == 0 && into != 0;
  const int first = (row + at - into) / kWord, turn = lane() / 8 - first;
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    const int j = (step + turn) & 3, byte = at - into + j * kWord;
    const uint32_t low = j & 1 ? words[1] : words[0], high = j & 1 ? words[3] : words[2];
    if (byte >= 0 && byte < bytes && !(cut && j == 0)) {
      to.words().store(first + j, j & 2 ? high : low);
    }
  }
  // Words that two warps have a part of.
  const bool ends = lane() == kWarp - 1;
  if (into == 0 || !(cut || ends)) return;
  const int part = cut ? 0 : kBytes - into, count = cut ? left : into;
#pragma unroll
  for (int k = 0; k < kWord - 1; ++k) {
    const int byte = at + part + k;
    if (k < count && byte >= 0 && byte < bytes) {
      const uint32_t word = cut ? values[0] : values[3] >> 8 * left;
      to.bytes.store(row + byte, static_cast<uint8_t>(word >> 8 * k));
    }
  }
}

// The same of one channel of a row: a byte of every three.
__device__ __forceinline__ void store_plane(const Staged& to, int first, int at, int pixels,
                                            const Vec<uint32_t, 4>& values) {
#pragma unroll
  for (int k = 0; k < kBytes; ++k) {
    if (at + k >= 0 && at + k < pixels) {
      const uint32_t byte = values[k / kWord] >> 8 * (k % kWord);
      to.bytes.store(first + 3 * (at + k), static_cast<uint8_t>(byte));
    }
  }
}

// 16 bytes of the source from byte `first` on, aligned; one by one where they would leave it.
__device__ __forceinline__ Vec<uint32_t, 4> load_inside(const Pixels& from, int64_t first) {
  if (first >= 0 && first + kBytes <= from.span) {
    const auto* at = from.bytes.address + first;
    return Global<const uint32_t>{reinterpret_cast<const uint32_t*>(at)}.load<4>(0);
  }
  Vec<uint32_t, 4> values{};
#pragma unroll
  for (int k = 0; k < kBytes; ++k) {
    if (first + k >= 0 && first + k < from.span) {
      values[k / kWord] |= uint32_t{from.bytes.load(first + k)} << 8 * (k % kWord);
    }
  }
  return values;
}

// Rows [begin, end) in runs of neighbouring bytes: aligned accesses of 16, which two neighbouring
// lanes make of a whole sector.
__device__ __forceinline__ void stage_runs(const Pixels& from, const Staged& to, int begin,
                                           int end) {
  const bool planes = from.runs == static_cast<int>(Runs::planes);
  const int parts = planes ? 3 : 1, each = planes ? 1 : 3;
  const int runs = (end - begin) * parts;
  const int bytes = each * to.pixels;
  const int inside = each * min(to.pixels, from.width - to.first_pixel);
  const int vectors = (bytes + 2 * (kSector - 1)) / kSector * (kSector / kBytes);
  const int skew = static_cast<int>(reinterpret_cast<uintptr_t>(from.bytes.address) % kSector);
  for (int i = static_cast<int>(threadIdx.x) - lane(); i < runs * vectors; i += blockDim.x) {
    const int run = (i + lane()) / vectors, vector = i + lane() - run * vectors;
    const int y = begin + run / parts, channel = run % parts;
    const int64_t first =
        y * from.row_stride + to.first_pixel * from.pixel_stride + channel * from.channel_stride;
    // The run begins `before` bytes into a sector; this vector, `at` bytes into the run.
    const int before = static_cast<int>((first + skew) % kSector);
    const int at = vector * kBytes - before;
    const bool mine = run < runs && at + kBytes > 0 && at < bytes;
    Vec<uint32_t, 4> values{};
    if (mine && y < from.height && at < inside) values = load_inside(from, first + at);
    const uint32_t below = shuffle_idx(values[3], max(lane() - 1, 0));
    if (mine && planes) {
      store_plane(to, to.row(y) + channel, at, to.pixels, values);
    } else if (mine) {
      store_staged(to, to.row(y), at, bytes, below, values);
    }
  }
}

// Stages rows [begin, end). What lies past the source's ends is of no weight, but is written too.
// Others read after a barrier.
__device__ __forceinline__ void stage(const Pixels& from, const Staged& to, int begin, int end) {
  if (from.runs != static_cast<int>(Runs::none)) {
    stage_runs(from, to, begin, end);
    return;
  }
  const int bytes = 3 * to.pixels;
  for (int i = threadIdx.x; i < (end - begin) * bytes; i += blockDim.x) {
    const int row = i / bytes, byte = i - row * bytes, y = begin + row;
    const int x = to.first_pixel + byte / 3;
    const int64_t offset =
        y * from.row_stride + x * from.pixel_stride + byte % 3 * from.channel_stride;
    const bool inside = y < from.height && x < from.width;
    to.bytes.store(to.row(y) + byte, inside ? from.bytes.load(offset) : uint8_t{0});
  }
}

// Zeros in bytes [from, to) of rows [begin, end).
__device__ __forceinline__ void clear(const Staged& staged, int begin, int end, int from, int to) {
  const int bytes = to - from;
  for (int i = threadIdx.x; i < (end - begin) * bytes; i += blockDim.x) {
    const int row = i / bytes;
    staged.bytes.store(staged.row(begin + row) + from + i - row * bytes, uint8_t{0});
  }
}

}  // namespace flashvl::cuda
