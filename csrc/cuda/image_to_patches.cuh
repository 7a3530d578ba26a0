// A uint8 image resized, cut into overlapping tiles, normalised and laid out as patches.
//
// Pillow's antialiased bicubic is one filter an axis, each rounded to uint8 (image_filter.cuh), so
// the result is Pillow's, bit for bit. The first pass leaves planes whose neighbours lie along the
// other axis, for the second, which filters what it writes: overlapping tiles are cut, normalised
// and laid out without a canvas in memory. An axis that keeps its size has no first pass. Bound by
// the bytes of the image where it is large, and not far from that by the products: 2.3 operations
// each, 4 times the reduction for each value of a pass.
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
  // Of a block: outputs and lines, and the staged positions and their pitch.
  int outputs_at_once, lines_at_once, positions, pitch;
};

// The grid is the blocks of outputs times those of lines, the outputs running fastest.
template <int kChannels>
__global__ void __launch_bounds__(kImageThreads) resize_kernel(ResizeArgs args) {
  const int blocks = static_cast<int>(ceil_div(args.outputs, args.outputs_at_once));
  const int begin = static_cast<int>(blockIdx.x) % blocks * args.outputs_at_once;
  const int end = min(begin + args.outputs_at_once, args.outputs);
  const int first_line = static_cast<int>(blockIdx.x) / blocks * args.lines_at_once;
  const Staged staged{dynamic_shared<uint8_t>(),
                      args.pitch,
                      first_line,
                      min(args.lines_at_once, args.source.lines - first_line),
                      args.filter.first.load(begin) / kBytes * kBytes,
                      args.positions};
  stage(args.source, staged);
  sync_block();
  filter(args.filter, staged, begin, end, [&](int output, int line, const int (&greys)[3]) {
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      const int64_t row = static_cast<int64_t>(c) * args.outputs + output;
      args.planes.store(row * args.plane_pitch + first_line + line, static_cast<uint8_t>(greys[c]));
    }
  });
}

// patches: [tiles, tile * tile, 3 * patch * patch], tiles `step` patches apart, `cols` in a row.
template <class T>
struct PatchesArgs {
  Pixels source;
  Filter filter;
  Global<T> patches;
  int cols, tile, step, patch;
  int down;    // the filter is along the rows of pixels' columns: lines are x, else y
  int tokens;  // of a block: neighbours in a row of a tile
  int outputs_at_once, lines_at_once, positions, pitch;
  int out_offset;  // bytes of shared memory before the block's result
  float mean[3], std[3];
};

// The tokens of a block: the first of them, how many, and the pixel they begin at.
struct PatchRow {
  int64_t token;
  int count, x, y;
};

template <class T>
__device__ __forceinline__ PatchRow patch_row(const PatchesArgs<T>& args) {
  const int blocks = static_cast<int>(ceil_div(args.tile, args.tokens));
  const int row = static_cast<int>(blockIdx.x) / blocks;  // of all tiles
  const int number = row / args.tile, in_y = row % args.tile;
  const int in_x = static_cast<int>(blockIdx.x) % blocks * args.tokens;
  return {static_cast<int64_t>(row) * args.tile + in_x, min(args.tokens, args.tile - in_x),
          (number % args.cols * args.step + in_x) * args.patch,
          (number / args.cols * args.step + in_y) * args.patch};
}

// Elements [0, count) of shared memory, from `shift` on, to memory from `start` on; both are
// equally far from a multiple of 16 bytes.
template <class T>
__device__ __forceinline__ void store_run(const Shared<T>& from, const Global<T>& to, int64_t start,
                                          int shift, int count) {
  constexpr int kVec = kBytes / sizeof(T);
  const int64_t base = start - shift;
  for (int i = threadIdx.x * kVec; i < shift + count; i += blockDim.x * kVec) {
    if (i >= shift && i + kVec <= shift + count) {
      to.store(base + i, from.template load<kVec>(i));
      continue;
    }
#pragma unroll
    for (int k = 0; k < kVec; ++k) {
      if (i + k >= shift && i + k < shift + count) to.store(base + i + k, from.load(i + k));
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kImageThreads) patches_kernel(PatchesArgs<T> args) {
  const PatchRow at = patch_row(args);
  const int width = at.count * args.patch, area = args.patch * args.patch;
  const int lines = args.down ? width : args.patch, outputs = args.down ? args.patch : width;
  const int first_line = args.down ? at.x : at.y, first_output = args.down ? at.y : at.x;
  const int64_t start = at.token * 3 * area;
  const int shift = static_cast<int>(start % (kBytes / static_cast<int>(sizeof(T))));
  const Shared<T> result = dynamic_shared<T>(args.out_offset);

  const auto put = [&](int y, int x, const int (&greys)[3]) {
    const int token = x / args.patch;
    const int place = shift + token * 3 * area + y * args.patch + x - token * args.patch;
#pragma unroll
    for (int c = 0; c < 3; ++c) {
      // Divisions as the reference has them: nothing rounds otherwise.
      const float value = (static_cast<float>(greys[c]) / 255.0f - args.mean[c]) / args.std[c];
      result.store(place + c * area, from_float<T>(value));
    }
  };
#pragma unroll 1
  for (int line = 0; line < lines; line += args.lines_at_once) {
#pragma unroll 1
    for (int output = 0; output < outputs; output += args.outputs_at_once) {
      const int begin = first_output + output;
      const int end = begin + min(args.outputs_at_once, outputs - output);
      const Staged staged{dynamic_shared<uint8_t>(),
                          args.pitch,
                          first_line + line,
                          min(args.lines_at_once, lines - line),
                          args.filter.first.load(begin) / kBytes * kBytes,
                          args.positions};
      stage(args.source, staged);
      sync_block();
      filter(args.filter, staged, begin, end, [&](int o, int l, const int (&greys)[3]) {
        const int along = o - first_output, across = line + l;
        put(args.down ? along : across, args.down ? across : along, greys);
      });
      sync_block();  // the next lines replace these, and the result is complete
    }
  }
  store_run(result, args.patches, start, shift, at.count * 3 * area);
}

}  // namespace flashvl::cuda
