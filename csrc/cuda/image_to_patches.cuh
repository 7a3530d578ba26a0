// A uint8 image resized, cut into overlapping tiles, normalised and laid out as patches.
//
// Pillow's antialiased bicubic is one filter an axis, each rounded to uint8 (image_filter.cuh), so
// the result is Pillow's, bit for bit. A block makes neighbouring tokens in some rows of a tile. It
// goes down the rows of the image that these need, some at a time, each in one run of bytes; the
// first pass leaves bytes in shared memory for the last, which filters what is normalised and
// written. Nothing but image, weights and patches is in memory, and the image's bytes that several
// blocks need come from the L2 cache. Where those bytes do not fit (images reduced some thirty
// times), they are left in memory as an image by a launch of their own. An axis that keeps its size
// has no first pass. Bound by the bytes of the image where it is large, and not far from that by
// the products: 2.3 operations each, 4 times the reduction for each value of a pass.
#pragma once

#include "image_filter.cuh"

namespace flashvl::cuda {

constexpr int kImageThreads = 256;

struct Span {
  int begin, end;

  __device__ __forceinline__ int count() const { return end - begin; }
  // The next `size` from `at` on, or as many as are left.
  __device__ __forceinline__ Span part(int at, int size) const { return {at, min(at + size, end)}; }
};

// What a block stages of a source at a time: so many outputs of a filter, and lines along it.
struct Stage {
  int outputs, lines, slots, pitch, unit;
};

__device__ __forceinline__ int whole_fours(int count) { return (count + 3) / 4 * 4; }

// Filters part of the source, staged at the beginning of shared memory: calls along(output, y,
// sums) or down(output, word, sums). Others may write there after a barrier.
template <class A, class D>
__device__ __forceinline__ void filter_part(const Pixels& source, const Taps& taps,
                                            const Stage& stage_of, bool goes_down,
                                            const Span& outputs, const Span& lines, A along,
                                            D down) {
  const int start = taps.start(outputs.begin), stop = taps.stop(outputs.end - 1);
  Staged staged{dynamic_shared<uint8_t>(),
                stage_of.pitch,
                stage_of.unit,
                lines.begin,
                stage_of.slots,
                start,
                stop - start};
  if (goes_down) {
    staged.first_row = start;
    staged.first_pixel = lines.begin;
    staged.pixels = whole_fours(lines.count());
    stage(source, staged, start, stop);
  } else {
    stage(source, staged, lines.begin, lines.end);
  }
  sync_block();  // the rows are there
  if (goes_down) {
    filter_down<3>(taps, outputs.begin, outputs.end, staged, down);
  } else {
    filter_along(taps, outputs.begin, outputs.end, staged, lines.begin, lines.count(), along);
  }
}

// image: uint8 [rows, pitch], pixels of three bytes: the result of a pass along one axis.
struct ResizeArgs {
  Pixels source;
  Filter filter;
  Global<uint8_t> image;
  int64_t image_pitch;
  int outputs, lines, down;
  Stage stage;
  int result_pitch, result_offset, taps_offset;  // bytes of shared memory
};

// The grid is the blocks of outputs times those of lines, the outputs running fastest.
template <int kChannels>
__global__ void __launch_bounds__(kImageThreads) resize_kernel(ResizeArgs args) {
  const int blocks = static_cast<int>(ceil_div(args.outputs, args.stage.outputs));
  const int block = static_cast<int>(blockIdx.x);
  const Span outputs =
      Span{0, args.outputs}.part(block % blocks * args.stage.outputs, args.stage.outputs);
  const Span lines = Span{0, args.lines}.part(block / blocks * args.stage.lines, args.stage.lines);
  const Taps taps = stage_taps(args.filter, dynamic_shared<int32_t>(args.taps_offset),
                               outputs.begin, outputs.end);
  sync_block();
  const bool down = args.down != 0;
  const Span xs = down ? lines : outputs, ys = down ? outputs : lines;
  const Staged result{dynamic_shared<uint8_t>(args.result_offset),
                      args.result_pitch,
                      kWarp,
                      ys.begin,
                      ys.count(),
                      xs.begin,
                      xs.count()};
  const auto put = [&](int y, int x, int grey) {
    const int byte = result.row(y) + x;
    result.bytes.store(byte, static_cast<uint8_t>(grey));
  };
  filter_part(
      args.source, taps, args.stage, down, outputs, lines,
      [&](int x, int y, const Sums<3>& sums) {
#pragma unroll
        for (int c = 0; c < kChannels; ++c) put(y, (x - xs.begin) * kChannels + c, sums.grey(c));
      },
      [&](int y, int word, const uint32_t (&bytes)[3]) {
#pragma unroll
        for (int n = 0; n < 12; ++n) {
          const int byte = word * kWord + n;
          if (byte < xs.count() * kChannels) put(y, byte, byte_of(bytes[n / kWord], n));
        }
      });
  sync_block();  // the result is complete
  const int bytes = xs.count() * kChannels;
  for (int i = threadIdx.x; i < ys.count() * bytes; i += blockDim.x) {
    const int row = i / bytes, byte = i - row * bytes, y = ys.begin + row;
    const int64_t at = y * args.image_pitch + xs.begin * kChannels + byte;
    args.image.store(at, result.bytes.load(result.row(y) + byte));
  }
}

// grey / 255 of a whole grey, rounded as the division rounds it (a test has all 256), in a third of
// its instructions.
__device__ __forceinline__ float over_255(float grey) {
  const float about = grey * (1.0f / 255.0f);
  return fmaf(fmaf(-255.0f, about, grey), 1.0f / 255.0f, about);
}

// patches: [tiles, tile * tile, 3 * patch * patch], tiles `step` patches apart, `cols` in a row.
template <class T>
struct Patches {
  Global<T> patches;
  int cols, tile, step, patch;
  int turned;        // the source's rows are columns of the result
  int tokens, rows;  // of a block: neighbours in a row of a tile, and such rows
  int out_offset;    // bytes of shared memory before the block's result
  float mean[3], std[3];
};

// The patches of a block: which they are, and their values in shared memory, a row of tokens after
// the other, each as far from a multiple of 16 bytes as it will be in memory.
template <class T>
class PatchBlock {
 public:
  Span xs, ys;  // of the resized image, in pixels; the source's rows are of xs

  __device__ __forceinline__ explicit PatchBlock(const Patches<T>& to)
      : to_(to), result_(dynamic_shared<T>(to.out_offset)) {
    const int across = static_cast<int>(ceil_div(to.tile, to.tokens));
    const int below = static_cast<int>(ceil_div(to.tile, to.rows));
    const int block = static_cast<int>(blockIdx.x), number = block / across / below;
    const int in_x = block % across * to.tokens, in_y = block / across % below * to.rows;
    count_ = min(to.tokens, to.tile - in_x);
    rows_ = min(to.rows, to.tile - in_y);
    token_ = (static_cast<int64_t>(number) * to.tile + in_y) * to.tile + in_x;
    const int x = (number % to.cols * to.step + in_x) * to.patch;
    const int y = (number / to.cols * to.step + in_y) * to.patch;
    xs = {x, x + count_ * to.patch};
    ys = {y, y + rows_ * to.patch};
    if (to.turned) {
      const Span high = ys;
      ys = xs;
      xs = high;
    }
  }

  // The last pass's outputs: of a pixel, and of four neighbours of a row.
  __device__ __forceinline__ auto along() const {
    return [this](int x, int y, const Sums<3>& sums) {
      const int at = place(y, x);
#pragma unroll
      for (int c = 0; c < 3; ++c) result_.store(at + c * area(), value(sums.grey(c), c));
    };
  }
  __device__ __forceinline__ auto down() const {
    return [this](int y, int word, const uint32_t (&bytes)[3]) {
      const bool pairs = !to_.turned && to_.patch % 2 == 0;  // lie in a patch, and are aligned
      uint64_t greys = uint64_t{bytes[1]} << 32 | bytes[0];
      const int first = xs.begin + word / 3 * 4;
      // Not unrolled: in twelve divisions at once, some registers are spilled.
#pragma unroll 1
      for (int x = first; x < min(first + 4, xs.end); x += 2) {
        const bool both = x + 1 < xs.end;
        const int at = place(y, x), next = pairs || !both ? at : place(y, x + 1);
#pragma unroll
        for (int c = 0; c < 3; ++c) {
          const auto value_of = [&](int n) {
            return value(static_cast<int>(greys >> 8 * n & 255), c);
          };
          const Vec<T, 2> two{{value_of(c), value_of(3 + c)}};
          if (pairs) {
            result_.store(at + c * area(), two);
          } else {
            result_.store(at + c * area(), two[0]);
            if (both) result_.store(next + c * area(), two[1]);
          }
        }
        greys = greys >> 48 | uint64_t{bytes[2]} << 16;
      }
    };
  }

  __device__ __forceinline__ void store() const {
    const int each = 3 * to_.patch * to_.patch;
#pragma unroll 1
    for (int row = 0; row < rows_; ++row) {
      store_run(result_ + row * pitch(), (token_ + row * to_.tile) * each, shift(row),
                count_ * each);
    }
  }

 private:
  static constexpr int kVec = kBytes / static_cast<int>(sizeof(T));

  __device__ __forceinline__ int area() const { return to_.patch * to_.patch; }
  // Where a pixel's first channel goes.
  __device__ __forceinline__ int place(int y, int x) const {
    const int down = y - ys.begin, across = x - xs.begin;
    const int in_y = to_.turned ? across : down, in_x = to_.turned ? down : across;
    const int row = in_y / to_.patch, token = in_x / to_.patch;
    return row * pitch() + shift(row) + token * 3 * area() + (in_y - row * to_.patch) * to_.patch +
           in_x - token * to_.patch;
  }
  __device__ __forceinline__ T value(int grey, int channel) const {
    const float unit = over_255(static_cast<float>(grey));
    return from_float<T>((unit - to_.mean[channel]) / to_.std[channel]);
  }
  // Elements between rows of tokens, and those before the first of a row.
  __device__ __forceinline__ int pitch() const {
    return (to_.tokens * 3 * to_.patch * to_.patch / kVec + 2) * kVec;
  }
  __device__ __forceinline__ int shift(int row) const {
    const uint32_t token = static_cast<uint32_t>(token_) + static_cast<uint32_t>(row * to_.tile);
    return static_cast<int>(token * static_cast<uint32_t>(3 * to_.patch * to_.patch) % kVec);
  }

  // Elements [0, count) of shared memory, from `shift` on, to memory from `start` on; both are
  // equally far from a multiple of 16 bytes.
  __device__ __forceinline__ void store_run(const Shared<T>& from, int64_t start, int shift,
                                            int count) const {
    const int64_t base = start - shift;
    for (int i = threadIdx.x * kVec; i < shift + count; i += blockDim.x * kVec) {
      if (i >= shift && i + kVec <= shift + count) {
        to_.patches.store(base + i, from.template load<kVec>(i));
        continue;
      }
#pragma unroll
      for (int k = 0; k < kVec; ++k) {
        if (i + k >= shift && i + k < shift + count) {
          to_.patches.store(base + i + k, from.load(i + k));
        }
      }
    }
  }

  const Patches<T>& to_;
  Shared<T> result_;
  int count_, rows_;
  int64_t token_;  // the first
};

template <class T>
struct PatchesArgs {
  Pixels source;
  Filter filter;
  Patches<T> to;
  int down;  // the filter goes down the source's columns
  Stage stage;
  int taps_offset;  // bytes of shared memory before the weights
};

// One pass: of an image one of whose axes keeps its size. Of the 64 registers that ptxas gives it
// without a number of blocks, it would spill some.
template <class T>
__global__ void __launch_bounds__(kImageThreads, 2) patches_kernel(PatchesArgs<T> args) {
  const PatchBlock<T> block(args.to);
  const bool down = args.down != 0;
  const Span outputs = down ? block.ys : block.xs, lines = down ? block.xs : block.ys;
#pragma unroll 1
  for (int begin = outputs.begin; begin < outputs.end; begin += args.stage.outputs) {
    const Span some = outputs.part(begin, args.stage.outputs);
    const Taps taps =
        stage_taps(args.filter, dynamic_shared<int32_t>(args.taps_offset), some.begin, some.end);
    sync_block();
#pragma unroll 1
    for (int line = lines.begin; line < lines.end; line += args.stage.lines) {
      filter_part(args.source, taps, args.stage, down, some, lines.part(line, args.stage.lines),
                  block.along(), block.down());
      sync_block();  // the next rows replace these, and the result is complete
    }
  }
  block.store();
}

template <class T>
struct ImageArgs {
  Pixels source;
  Filter first, last;
  Patches<T> to;
  int down;     // the last pass goes down the source's columns
  Stage stage;  // of the source, for the first pass
  int between_pitch, between_unit;
  int between_offset, first_offset,
      last_offset;  // bytes of shared memory before what lies between the passes and the weights
};

// The first pass along the rows that the last one needs, some of them at a time.
template <class T>
__device__ __forceinline__ void first_along(const ImageArgs<T>& args, const Taps& taps,
                                            const Span& xs, const Staged& between) {
  const int end = min(between.first_row + between.slots, args.source.height);
  clear(between, between.first_row, end, 3 * xs.count(), 3 * between.pixels);
  clear(between, end, between.first_row + between.slots, 0, 3 * between.pixels);
  Staged staged{dynamic_shared<uint8_t>(),
                args.stage.pitch,
                args.stage.unit,
                0,
                args.stage.slots,
                taps.start(xs.begin),
                taps.stop(xs.end - 1) - taps.start(xs.begin)};
#pragma unroll 1
  for (int row = between.first_row; row < end; row += args.stage.lines) {
    const int rows = min(args.stage.lines, end - row);
    staged.first_row = row;
    stage(args.source, staged, row, row + rows);
    sync_block();  // some rows are there
    filter_along(taps, xs.begin, xs.end, staged, row, rows, [&](int x, int y, const Sums<3>& sums) {
      const int at = between.row(y) + 3 * (x - xs.begin);
#pragma unroll
      for (int c = 0; c < 3; ++c) {
        between.bytes.store(at + c, static_cast<uint8_t>(sums.grey(c)));
      }
    });
    sync_block();  // some more replace them, and at the end the result does
  }
}

// The first pass down the columns that the last one needs, some outputs at a time: the rows of the
// source take the places of those that no more outputs need.
template <class T>
__device__ __forceinline__ void first_down(const ImageArgs<T>& args, const Taps& taps,
                                           const Span& ys, const Staged& between) {
  const Staged staged{
      dynamic_shared<uint8_t>(), args.stage.pitch,    args.stage.unit, taps.start(ys.begin),
      args.stage.slots,          between.first_pixel, between.pixels};
  int staged_end = staged.first_row;
#pragma unroll 1
  for (int begin = ys.begin; begin < ys.end; begin += args.stage.outputs) {
    const int end = ys.part(begin, args.stage.outputs).end;
    const int from = max(staged_end, taps.start(begin));
    staged_end = taps.stop(end - 1);
    stage(args.source, staged, from, staged_end);
    sync_block();  // the new rows are there
    filter_down<1>(taps, begin, end, staged, [&](int y, int word, const uint32_t (&bytes)[1]) {
      between.words().store(between.row(y) / kWord + word, bytes[0]);
    });
    sync_block();  // more rows replace these, and at the end the result does
  }
}

// Both passes. What lies between them are rows of the source, or outputs of its columns.
template <class T>
__global__ void __launch_bounds__(kImageThreads) image_kernel(ImageArgs<T> args) {
  const PatchBlock<T> block(args.to);
  const bool down = args.down != 0;
  const Span& xs = block.xs;
  const Span& ys = block.ys;
  const Span across = down ? xs : ys, along = down ? ys : xs;
  const Taps first =
      stage_taps(args.first, dynamic_shared<int32_t>(args.first_offset), across.begin, across.end);
  const Taps last =
      stage_taps(args.last, dynamic_shared<int32_t>(args.last_offset), along.begin, along.end);
  sync_block();
  const int start = last.start(along.begin), count = last.stop(along.end - 1) - start;
  const Shared<uint8_t> bytes = dynamic_shared<uint8_t>(args.between_offset);
  if (down) {
    const Staged between{bytes, args.between_pitch, args.between_unit,      start,
                         count, xs.begin,           whole_fours(xs.count())};
    first_along(args, first, xs, between);
    filter_down<3>(last, ys.begin, ys.end, between, block.down());
  } else {
    const Staged between{bytes, args.between_pitch, args.between_unit, ys.begin, ys.count(), start,
                         count};
    first_down(args, first, ys, between);
    filter_along(last, xs.begin, xs.end, between, ys.begin, ys.count(), block.along());
  }
  sync_block();  // the result is complete
  block.store();
}

}  // namespace flashvl::cuda
