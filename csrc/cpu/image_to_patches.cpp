// A uint8 image, resized, cut into overlapping tiles, normalised and laid out as GEMM-ready rows,
// in one pass over bands of canvas rows.
//
// Bound by reading the image when it is much larger than the canvas (36 MB for a 12-megapixel
// photo), else by instructions. No intermediate picture: a band keeps as many rows as a window of
// the second pass needs (a ring of 36 rows of 1.5 KiB for that photo at 512 pixels). The filter is
// in resample.h; normalising is a table of 256 values a channel, since a resized pixel is a byte.

#include "image_to_patches.h"

#include "resample.h"
#include "vec.h"

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

constexpr int kRows = 4;  // rows that the pass across takes at once
constexpr int kPad = 64;  // bytes after a row: the pass across writes one past the end

// Where the tables and a task's rows lie. Offsets into the memory are taken in one order, so that
// the same code measures and hands out.
struct Plan {
  bool rows_first;
  Filter down;
  Filter across;
  void* normalised;        // T[3][256]
  const uint8_t** window;  // the rows that a window of the pass down adds up
  uint8_t* ring;           // columns first: rows after the pass across; rows first: kRows rows of
                           // the image's width
  int64_t ring_rows;
  int64_t ring_stride;
  uint8_t* canvas;  // rows first: kRows rows, else one
  int64_t canvas_stride;
  int64_t bytes;
};

struct Cursor {
  char* base;
  int64_t used;

  template <class T>
  T* take(int64_t count) {
    char* place = base == nullptr ? nullptr : base + used;
    used += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
    return reinterpret_cast<T*>(place);
  }
};

int64_t canvas_side(int64_t tiles, const ImageToPatchesArgs& args) {
  return (tiles * (args.tile - args.overlap) + args.overlap) * args.patch;
}

Filter take_filter(Cursor& cursor, int64_t size, int64_t out, int64_t groups) {
  int64_t* first = cursor.take<int64_t>(out);
  return {size, out, groups, first, cursor.take<uint8_t>(out * groups * kGroupBytes)};
}

// The parts of `task`; args.tasks for the end of the memory.
Plan plan_of(const ImageToPatchesArgs& args, void* memory, int64_t task) {
  const int64_t high = canvas_side(args.rows, args), wide = canvas_side(args.cols, args);
  Cursor cursor = {static_cast<char*>(memory), 0};
  Plan plan;
  // Pillow 13 resizes the rows first where that saves much (python-pillow/Pillow#9549).
  plan.rows_first = args.height > high && args.height - high > 2 * (args.width - wide);
  plan.down = take_filter(cursor, args.height, high, args.down_groups);
  plan.across = take_filter(cursor, args.width, wide, args.across_groups);
  plan.normalised = cursor.take<float>(3 * 256);
  plan.ring_rows = plan.rows_first ? kRows : args.down_groups * kTaps + kRows;
  plan.ring_stride = 3 * (plan.rows_first ? args.width : wide) + kPad;
  plan.canvas_stride = 3 * wide + kPad;
  const int64_t shared = cursor.used;
  plan.window = cursor.take<const uint8_t*>(args.down_groups * kTaps);
  plan.ring = cursor.take<uint8_t>(plan.ring_rows * plan.ring_stride);
  plan.canvas = cursor.take<uint8_t>((plan.rows_first ? kRows : 1) * plan.canvas_stride);
  const int64_t own = cursor.used - shared;
  plan.bytes = shared + args.tasks * own;
  if (memory == nullptr) return plan;
  plan.window += task * own / static_cast<int64_t>(sizeof(uint8_t*));
  plan.ring += task * own;
  plan.canvas += task * own;
  return plan;
}

// (v / 255 - mean) / std in fp32, rounded once.
template <class T>
void fill_normalised(const ImageToPatchesArgs& args, T* table) {
  for (int channel = 0; channel < 3; ++channel) {
    for (int v = 0; v < 256; ++v) {
      const float value = static_cast<float>(v) / 255.0f;
      const F32 scaled = splat((value - args.mean[channel]) / args.std[channel]);
      store_some(table + channel * 256 + v, scaled, 1);
    }
  }
}

// Row y of the canvas, as patches of every tile it crosses: two rows of tiles where they overlap.
template <class T>
void write_patches(const ImageToPatchesArgs& args, const T* table, const uint8_t* canvas,
                   int64_t y) {
  const int64_t patch = args.patch, tile = args.tile, area = patch * patch;
  const int64_t side = tile * patch, step = (tile - args.overlap) * patch;
  int64_t row = y / step < args.rows ? y / step : args.rows - 1;
  for (; row >= 0 && y < row * step + side; --row) {
    const int64_t down = (y - row * step) / patch, line = (y - row * step) % patch;
    for (int64_t col = 0; col < args.cols; ++col) {
      const int64_t token = (row * args.cols + col) * tile * tile + down * tile;
      T* to = static_cast<T*>(args.y) + token * 3 * area + line * patch;
      const uint8_t* from = canvas + 3 * col * step;
      for (int64_t across = 0; across < tile; ++across) {
        for (int64_t i = 0; i < patch; ++i) {
          to[i] = table[from[3 * i]];
          to[i + area] = table[256 + from[3 * i + 1]];
          to[i + 2 * area] = table[512 + from[3 * i + 2]];
        }
        to += 3 * area;
        from += 3 * patch;
      }
    }
  }
}

const uint8_t* image_row(const ImageToPatchesArgs& args, int64_t row) {
  return args.image + (row < args.height ? row : args.height - 1) * args.row_stride;
}

// The pass across into a ring of rows, four at a time and only once each; then the pass down.
template <class T>
void columns_first(const ImageToPatchesArgs& args, const Plan& plan, int64_t begin, int64_t end) {
  const bool kept = plan.across.size == plan.across.out;
  const int64_t taps = plan.down.groups * kTaps;
  int64_t made = plan.down.first[begin];
  for (int64_t y = begin; y < end; ++y) {
    const int64_t first = plan.down.first[y];
    const int64_t stop = first + taps < args.height ? first + taps : args.height;
    for (; !kept && made < stop; made += kRows) {
      const uint8_t* from[kRows];
      uint8_t* to[kRows];
      for (int k = 0; k < kRows; ++k) {
        from[k] = image_row(args, made + k);
        to[k] = plan.ring + (made + k) % plan.ring_rows * plan.ring_stride;
      }
      blend_pixels({from[0], from[1], from[2], from[3]}, plan.across, {to[0], to[1], to[2], to[3]});
    }
    for (int64_t t = 0; t < taps; ++t) {
      const int64_t row = first + t < args.height ? first + t : args.height - 1;
      plan.window[t] =
          kept ? image_row(args, row) : plan.ring + row % plan.ring_rows * plan.ring_stride;
    }
    blend_rows(plan.window, plan.down, y, 3 * plan.across.out, plan.canvas);
    write_patches(args, static_cast<const T*>(plan.normalised), plan.canvas, y);
  }
}

// The pass down, four canvas rows of the image's width; then the pass across.
template <class T>
void rows_first(const ImageToPatchesArgs& args, const Plan& plan, int64_t begin, int64_t end) {
  const bool kept = plan.across.size == plan.across.out;
  const int64_t taps = plan.down.groups * kTaps;
  const uint8_t* from[kRows];
  uint8_t* to[kRows];
  for (int64_t y = begin; y < end; y += kRows) {
    const int64_t rows = end - y < kRows ? end - y : kRows;
    for (int64_t k = 0; k < kRows; ++k) {
      uint8_t* row = plan.ring + k * plan.ring_stride;
      from[k] = row;
      to[k] = plan.canvas + k * plan.canvas_stride;
      if (k >= rows) continue;  // what lies there from before is not used
      for (int64_t t = 0; t < taps; ++t) {
        plan.window[t] = image_row(args, plan.down.first[y + k] + t);
      }
      blend_rows(plan.window, plan.down, y + k, 3 * args.width, row);
    }
    if (!kept) {
      blend_pixels({from[0], from[1], from[2], from[3]}, plan.across, {to[0], to[1], to[2], to[3]});
    }
    for (int64_t k = 0; k < rows; ++k) {
      write_patches(args, static_cast<const T*>(plan.normalised), kept ? from[k] : to[k], y + k);
    }
  }
}

template <class T>
void run_task(const ImageToPatchesArgs& args, void* memory, int64_t task) {
  const Plan plan = plan_of(args, memory, task);
  const int64_t high = plan.down.out;
  const int64_t begin = high * task / args.tasks, end = high * (task + 1) / args.tasks;
  if (begin == end) return;
  plan.rows_first ? rows_first<T>(args, plan, begin, end)
                  : columns_first<T>(args, plan, begin, end);
}

}  // namespace

void image_to_patches_measure(ImageToPatchesArgs& args) {
  args.down_groups = groups_of(args.height, canvas_side(args.rows, args), 1);
  args.across_groups = groups_of(args.width, canvas_side(args.cols, args), kParts);
  args.memory = plan_of(args, nullptr, 0).bytes;
}

void image_to_patches_prepare(const ImageToPatchesArgs& args, void* memory) {
  const Plan plan = plan_of(args, memory, 0);
  build(plan.down);
  build(plan.across);
  switch (args.dtype) {
    case DType::f32:
      return fill_normalised(args, static_cast<float*>(plan.normalised));
    case DType::bf16:
      return fill_normalised(args, static_cast<BF16*>(plan.normalised));
    case DType::f16:
      return fill_normalised(args, static_cast<F16*>(plan.normalised));
  }
}

void image_to_patches(const ImageToPatchesArgs& args, void* memory, int64_t task) {
  switch (args.dtype) {
    case DType::f32:
      return run_task<float>(args, memory, task);
    case DType::bf16:
      return run_task<BF16>(args, memory, task);
    case DType::f16:
      return run_task<F16>(args, memory, task);
  }
}

}  // namespace flashvl::cpu::FLASHVL_LEVEL
