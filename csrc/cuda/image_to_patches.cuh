// A uint8 image resized, cut into overlapping tiles, normalised and laid out as patches.
//
// Pillow's antialiased bicubic is one filter an axis, each rounded to uint8 (image_filter.cuh), so
// the result is Pillow's, bit for bit. A block makes neighbouring tokens in some rows of a tile:
// the first pass over the lines that they need leaves bytes in shared memory whose neighbours lie
// along the other axis, for the last, which filters what is normalised and written. Nothing but
// image, weights and patches is in memory, and the image's bytes that several blocks need come from
// the L2 cache. Where those bytes do not fit (images reduced some thirty times), they are left in
// memory as planes by a launch of their own. An axis that keeps its size has no first pass. Bound
// by the bytes of the image where it is large, and not far from that by the products: 2.3
// operations each, 4 times the reduction for each value of a pass.
#pragma once

#include "image_filter.cuh"

namespace flashvl::cuda {

constexpr int kImageThreads = 256;

// planes: [3, outputs, pitch], a line of the source at each place of a row.
struct ResizeArgs {
  Pixels source;
  Filter filter;
  Global<uint8_t> planes;
  int64_t plane_pitch;
  int outputs;
  // Of a block: outputs and lines, bytes between the staged lines, and bytes of them all.
  int outputs_at_once, lines_at_once, pitch, staged_bytes;
};

// The grid is the blocks of outputs times those of lines, the outputs running fastest.
template <int kChannels>
__global__ void __launch_bounds__(kImageThreads) resize_kernel(ResizeArgs args) {
  const int blocks = static_cast<int>(ceil_div(args.outputs, args.outputs_at_once));
  const int begin = static_cast<int>(blockIdx.x) % blocks * args.outputs_at_once;
  const int end = min(begin + args.outputs_at_once, args.outputs);
  const int first_line = static_cast<int>(blockIdx.x) / blocks * args.lines_at_once;
  const Taps taps = stage_taps(args.filter, dynamic_shared<int32_t>(args.staged_bytes), begin, end);
  sync_block();
  const Staged staged{dynamic_shared<uint8_t>(),
                      args.pitch,
                      first_line,
                      min(args.lines_at_once, args.source.lines - first_line),
                      taps.start(begin),
                      taps.reach(begin, end)};
  stage(args.source, staged);
  sync_block();  // the lines are there
  filter(taps, staged, [&](int output, int line, const int (&greys)[3]) {
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      const int64_t row = static_cast<int64_t>(c) * args.outputs + output;
      args.planes.store(row * args.plane_pitch + first_line + line, static_cast<uint8_t>(greys[c]));
    }
  });
}

// patches: [tiles, tile * tile, 3 * patch * patch], tiles `step` patches apart, `cols` in a row.
template <class T>
struct Patches {
  Global<T> patches;
  int cols, tile, step, patch;
  int down;          // the last filter is along the rows of pixels' columns: lines are x, else y
  int tokens, rows;  // of a block: neighbours in a row of a tile, and such rows
  int out_offset;    // bytes of shared memory before the block's result
  float mean[3], std[3];
};

struct Span {
  int begin, end;
};

// The patches of a block: which they are, and their values in shared memory, a row of tokens after
// the other, each as far from a multiple of 16 bytes as it will be in memory.
template <class T>
class PatchBlock {
 public:
  Span xs, ys;  // of the resized image, in pixels

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
  }

  // A pixel at (y, x) from the block's first one, three of 0..255.
  __device__ __forceinline__ void put(int y, int x, const int (&greys)[3]) const {
    const int row = y / to_.patch, token = x / to_.patch, area = to_.patch * to_.patch;
    const int place = row * pitch() + shift(row) + token * 3 * area +
                      (y - row * to_.patch) * to_.patch + x - token * to_.patch;
#pragma unroll
    for (int c = 0; c < 3; ++c) {
      // Divisions as the reference has them: nothing rounds otherwise.
      const float value = (static_cast<float>(greys[c]) / 255.0f - to_.mean[c]) / to_.std[c];
      result_.store(place + c * area, from_float<T>(value));
    }
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
  int outputs_at_once, lines_at_once, pitch, staged_bytes;  // as those of ResizeArgs
};

// One pass: of planes, or of an image one of whose axes keeps its size.
template <class T>
__global__ void __launch_bounds__(kImageThreads) patches_kernel(PatchesArgs<T> args) {
  const PatchBlock<T> block(args.to);
  const bool down = args.to.down != 0;
  const Span outputs = down ? block.ys : block.xs, lines = down ? block.xs : block.ys;
#pragma unroll 1
  for (int begin = outputs.begin; begin < outputs.end; begin += args.outputs_at_once) {
    const int end = min(begin + args.outputs_at_once, outputs.end);
    const Taps taps =
        stage_taps(args.filter, dynamic_shared<int32_t>(args.staged_bytes), begin, end);
    sync_block();
#pragma unroll 1
    for (int line = lines.begin; line < lines.end; line += args.lines_at_once) {
      const Staged staged{dynamic_shared<uint8_t>(),
                          args.pitch,
                          line,
                          min(args.lines_at_once, lines.end - line),
                          taps.start(begin),
                          taps.reach(begin, end)};
      stage(args.source, staged);
      sync_block();
      filter(taps, staged, [&](int output, int l, const int (&greys)[3]) {
        const int along = output - outputs.begin, across = line + l - lines.begin;
        block.put(down ? along : across, down ? across : along, greys);
      });
      sync_block();  // the next lines replace these, and the result is complete
    }
  }
  block.store();
}

template <class T>
struct ImageArgs {
  Pixels source;
  Filter first, last;
  Patches<T> to;
  int lines_at_once, pitch;  // of the source, for the first pass
  int between_pitch;         // of what lies between the passes
  int between_offset, first_offset,
      last_offset;  // bytes of shared memory before it and the weights
};

// Both passes. The positions of the last one are lines of the source.
template <class T>
__global__ void __launch_bounds__(kImageThreads) image_kernel(ImageArgs<T> args) {
  const PatchBlock<T> block(args.to);
  const bool down = args.to.down != 0;
  const Span across = down ? block.xs : block.ys, along = down ? block.ys : block.xs;
  const Taps first =
      stage_taps(args.first, dynamic_shared<int32_t>(args.first_offset), across.begin, across.end);
  const Taps last =
      stage_taps(args.last, dynamic_shared<int32_t>(args.last_offset), along.begin, along.end);
  sync_block();
  const Staged between{dynamic_shared<uint8_t>(args.between_offset),
                       args.between_pitch,
                       across.begin,
                       across.end - across.begin,
                       last.start(along.begin),
                       last.reach(along.begin, along.end)};
  const int inside = min(between.positions, args.source.lines - between.first_position);
  clear_past(between, inside);
#pragma unroll 1
  for (int line = 0; line < inside; line += args.lines_at_once) {
    const Staged staged{dynamic_shared<uint8_t>(),     args.pitch,
                        between.first_position + line, min(args.lines_at_once, inside - line),
                        first.start(across.begin),     first.reach(across.begin, across.end)};
    stage(args.source, staged);
    sync_block();  // some lines are there
    filter(first, staged, [&](int output, int l, const int (&greys)[3]) {
      const int row = output - across.begin;
#pragma unroll
      for (int c = 0; c < 3; ++c) {
        between.bytes.store((c * between.lines + row) * between.pitch + line + l,
                            static_cast<uint8_t>(greys[c]));
      }
    });
    sync_block();  // some more replace them, and at the end the result does
  }
  filter(last, between, [&](int output, int line, const int (&greys)[3]) {
    const int o = output - along.begin;
    block.put(down ? o : line, down ? line : o, greys);
  });
  sync_block();  // the result is complete
  block.store();
}

}  // namespace flashvl::cuda
