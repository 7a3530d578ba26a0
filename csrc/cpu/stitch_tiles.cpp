// Features of overlapping tiles put together to one canvas, in one pass.
//
// Bound by bytes: most positions lie in one tile, and a run of them is one copy; where tiles meet,
// two or four rows are added up in fp32 and rounded once. Which rows is worked out from the grid
// (canvas.h).

#include "stitch_tiles.h"

#include "canvas.h"

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

// `run` positions next to each other in one tile.
template <class T>
void copy_run(const Sources<T>& from, int64_t token_stride, int64_t channels, int64_t run, T* y) {
  if (token_stride == channels) return copy_row(from.row[0], y, run * channels);
  for (int64_t i = 0; i < run; ++i) {
    copy_row(from.row[0] + i * token_stride, y + i * channels, channels);
  }
}

template <class T>
void stitch_positions(const StitchTilesArgs& args, int64_t begin, int64_t end) {
  const Canvas& canvas = args.canvas;
  const int64_t image_stride = canvas.down.tiles * canvas.across.tiles * canvas.tile_stride;
  for (int64_t p = begin; p < end;) {
    const int64_t line = p / canvas.width, first = p - line * canvas.width;
    const int64_t line_end = (line + 1) * canvas.width;
    const int64_t stop = first + (line_end < end ? line_end : end) - p;
    const int64_t image = line / canvas.height;
    const T* x = static_cast<const T*>(args.x) + image * image_stride;
    T* y = static_cast<T*>(args.y) + line * canvas.width * args.channels;
    const AxisSources down = sources_along(canvas.down, line - image * canvas.height);
    for (int64_t col = first; col < stop;) {
      const AxisSources across = sources_along(canvas.across, col);
      const int64_t left = stop - col, run = across.run < left ? across.run : left;
      Sources<T> from = sources_at(canvas, x, down, across);
      T* to = y + col * args.channels;
      col += run;
      if (from.ways == 1) {
        copy_run(from, canvas.token_stride, args.channels, run, to);
        continue;
      }
      for (int64_t i = 0; i < run; ++i) {
        write_position(from, to + i * args.channels, args.channels);
        for (int way = 0; way < from.ways; ++way) from.row[way] += canvas.token_stride;
      }
    }
    p += stop - first;
  }
}

}  // namespace

void stitch_tiles(const StitchTilesArgs& args, int64_t begin, int64_t end) {
  switch (args.dtype) {
    case DType::f32:
      return stitch_positions<float>(args, begin, end);
    case DType::bf16:
      return stitch_positions<BF16>(args, begin, end);
    case DType::f16:
      return stitch_positions<F16>(args, begin, end);
  }
}

}  // namespace flashvl::cpu::FLASHVL_LEVEL
