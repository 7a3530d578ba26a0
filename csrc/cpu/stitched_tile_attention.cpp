// Attention inside overlapping tiles, written into the stitched canvas: matrix/flash.h over (image,
// head, band of canvas rows) items.
//
// A band belongs to one task, which goes through the tiles in order: no atomics, and the same sums
// whatever the number of threads. Queries whose weight is zero (crop: those a neighbour owns) are
// never computed. Where tiles are blended, results meet in fp32 and are rounded once. Bound by the
// tile unit and the exponentials.

#include "stitched_tile_attention.h"

#include "matrix/flash.h"

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

// The part of a position along one axis that comes from its place `local` in the `index`-th of
// `tiles` tiles; see _axis in tiles.py.
float axis_weight(const StitchedTileAttentionArgs& args, int64_t tiles, int64_t index,
                  int64_t local) {
  const int64_t step = args.tile - args.overlap;
  const bool before = index > 0 && local < args.overlap;
  const bool after = index < tiles - 1 && local >= step;
  if (!before && !after) return 1.0f;
  const int64_t place = before ? local : local - step;  // in the overlap
  if (args.rule == StitchRule::mean) return 0.5f;
  float share = place < (args.overlap + 1) / 2 ? 0.0f : 1.0f;  // of the lower (right) tile
  if (args.rule == StitchRule::linear) {
    share = static_cast<float>(2 * place + 1) / static_cast<float>(2 * args.overlap);
  }
  return before ? share : 1.0f - share;
}

// A band of one image and head, and where its positions lie.
template <class T>
struct Band {
  int64_t image;
  int64_t head;
  int64_t begin;  // canvas rows
  int64_t end;
  float* sums;  // [end - begin, canvas_cols, D]; null under crop
};

template <class T>
FlashQuery<T> band_query(const StitchedTileAttentionArgs& args, const Band<T>& band, int64_t row,
                         int64_t col, float weight) {
  FlashQuery<T> query = {.row = nullptr,
                         .keys = args.tile * args.tile,
                         .out = nullptr,
                         .sum = nullptr,
                         .weight = weight};
  if (weight < 1.0f) {
    const int64_t position = (row - band.begin) * args.canvas_cols + col;
    query.sum = band.sums + position * args.flash.head_dim;
  } else {
    const int64_t position = (band.image * args.canvas_rows + row) * args.canvas_cols + col;
    query.out = flash_out<T>(args.flash, position, band.head);
  }
  return query;
}

// The queries of the tile in grid row r and column c that the band is made of.
template <class T>
void band_tile(const StitchedTileAttentionArgs& args, Flash<T>& flash, const Band<T>& band,
               int64_t r, int64_t c) {
  const FlashArgs& tensors = args.flash;
  const int64_t step = args.tile - args.overlap;
  const int64_t tile = (band.image * args.rows + r) * args.cols + c;
  bool packed = false;
  for (int64_t y = 0; y < args.tile; ++y) {
    const int64_t row = r * step + y - args.border;
    const float row_weight = axis_weight(args, args.rows, r, y);
    if (row < band.begin || row >= band.end || row_weight == 0.0f) continue;
    for (int64_t x = 0; x < args.tile; ++x) {
      const int64_t col = c * step + x - args.border;
      const float weight = row_weight * axis_weight(args, args.cols, c, x);
      if (col < 0 || col >= args.canvas_cols || weight == 0.0f) continue;
      if (!packed) {
        flash.pack(flash_row<T>(tensors.k, tile, 0, band.head), tensors.k.token,
                   flash_row<T>(tensors.v, tile, 0, band.head), tensors.v.token,
                   args.tile * args.tile);
        packed = true;
      }
      FlashQuery<T> query = band_query(args, band, row, col, weight);
      query.row = flash_row<T>(tensors.q, tile, y * args.tile + x, band.head);
      flash.add(query);
    }
  }
  flash.flush();
}

// Positions that several tiles reach, rounded to the canvas.
template <class T>
void write_sums(const StitchedTileAttentionArgs& args, const Band<T>& band) {
  const int64_t head_dim = args.flash.head_dim, step = args.tile - args.overlap;
  const auto shared = [&](int64_t position, int64_t tiles) {
    const int64_t full = position + args.border;
    return full >= step && full < tiles * step && full % step < args.overlap;
  };
  for (int64_t row = band.begin; row < band.end; ++row) {
    const bool row_shared = shared(row, args.rows);
    for (int64_t col = 0; col < args.canvas_cols; ++col) {
      if (!row_shared && !shared(col, args.cols)) continue;
      const int64_t position = (row - band.begin) * args.canvas_cols + col;
      const float* sum = band.sums + position * head_dim;
      const int64_t canvas = (band.image * args.canvas_rows + row) * args.canvas_cols + col;
      T* out = flash_out<T>(args.flash, canvas, band.head);
      for_lanes(head_dim, [&](int64_t d, int64_t n) {
        if (n == kLanes) return store(out + d, load(sum + d));
        store_some(out + d, load_some(sum + d, n), n);
      });
    }
  }
}

int64_t sums_size(const StitchedTileAttentionArgs& args) {
  const int64_t rows = (args.canvas_rows + args.bands - 1) / args.bands;
  return args.rule == StitchRule::crop ? 0 : rows * args.canvas_cols * args.flash.head_dim;
}

template <class T>
void stitched_items(const StitchedTileAttentionArgs& args, const FlashTask& task) {
  const FlashScope scope;
  FlashArena arena(task.memory);
  Flash<T> flash(arena, args.flash.head_dim, args.tile * args.tile, 1, args.flash.scale);
  float* sums = arena.template take<float>(sums_size(args));
  const int64_t items = args.images * args.flash.heads * args.bands;
  for (int64_t i = task.task; i < items; i += task.tasks) {
    const int64_t which = i % args.bands, image_head = i / args.bands;
    const Band<T> band = {.image = image_head / args.flash.heads,
                          .head = image_head % args.flash.heads,
                          .begin = args.canvas_rows * which / args.bands,
                          .end = args.canvas_rows * (which + 1) / args.bands,
                          .sums = sums};
    for_lanes(sums_size(args), [&](int64_t s, int64_t n) { store_some(sums + s, zero(), n); });
    for (int64_t r = 0; r < args.rows; ++r) {
      for (int64_t c = 0; c < args.cols; ++c) band_tile(args, flash, band, r, c);
    }
    if (args.rule != StitchRule::crop) write_sums(args, band);
  }
}

}  // namespace

int64_t stitched_tile_attention_bytes(const StitchedTileAttentionArgs& args) {
  const int64_t flash =
      flash_bytes(args.flash.dtype, args.flash.head_dim, args.tile * args.tile, 1);
  return flash + (sums_size(args) * 4 + 63) / 64 * 64;
}

void stitched_tile_attention(const StitchedTileAttentionArgs& args, const FlashTask& task) {
  switch (args.flash.dtype) {
    case DType::f32:
      return stitched_items<float>(args, task);
    case DType::bf16:
      return stitched_items<BF16>(args, task);
    case DType::f16:
      return stitched_items<F16>(args, task);
  }
}

}  // namespace flashvl::cpu::FLASHVL_LEVEL
